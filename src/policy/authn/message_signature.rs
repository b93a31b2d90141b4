//! HTTP message signatures (RFC 9421) for outgate, which have the `tag` "outgate".
//! Did the client sign this request, just now?

use std::sync::Arc;

use http::{HeaderName, HeaderValue, Method};
use sfv::{BareItem, Dictionary, FieldType, InnerList, ListEntry, Parser};

use super::public_key::SignatureAlgorithm;
use super::{
    AuthnError, BodyCheck, CLOCK_SKEW, Client, Clients, OF_ONE_HOP, REMOVED_BY_CONNECTION, ReplayToken,
    SIGNATURE_LIFETIME_MAX, SignableRequest, VerifiedSignature,
};
use crate::http_message::{FieldName, FieldValue, Fields};
use crate::policy::message;
use crate::policy::message::digest::{self, CONTENT_DIGEST};
use crate::policy::message::members::{self, Member};

static SIGNATURE: HeaderName = HeaderName::from_static("signature");
static SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// The serialized tag, which has no other form (RFC 9651 §4.1.6). A line without it is not parsed.
const TAG: &[u8] = b"\"outgate\"";

/// A signature with outgate's tag, and its parameters.
pub(super) struct OutgateSignature<'a> {
    label: &'a str,
    /// The covered components, in order.
    covered: Vec<String>,
    /// The value of `@signature-params` (RFC 9421 §2.3).
    params: &'a str,
    created: i64,
    expires: Option<i64>,
    keyid: String,
    /// The algorithms that its `alg` parameter permits.
    algorithms: &'static [SignatureAlgorithm],
    signature: Vec<u8>,
}

fn signature_error(reason: &'static str) -> AuthnError {
    AuthnError::Signature(reason)
}

fn has_outgate_tag(line: FieldValue<'_>) -> bool {
    memchr::memmem::find(line.as_bytes(), TAG).is_some()
}

/// Returns the request's signature for outgate. More than one is an error.
pub(super) fn find_outgate_signature(fields: &Fields) -> Result<Option<OutgateSignature<'_>>, AuthnError> {
    if !fields.get_all(&SIGNATURE_INPUT).any(has_outgate_tag) {
        return Ok(None);
    }
    const INPUTS: &str = "Signature-Input is not a dictionary in which each label occurs once (RFC 9651 §3.2)";
    const SIGNATURES: &str = "Signature is not a dictionary in which each label occurs once (RFC 9651 §3.2)";
    let inputs = members::parse_all(fields, &SIGNATURE_INPUT).ok_or(signature_error(INPUTS))?;
    let parsed_members = inputs.iter().filter_map(|member| Some((member, ParsedMember::parse(member)?)));
    let mut tagged_members = parsed_members.filter(|(_, parsed)| parsed.has_outgate_tag());
    let Some((member, parsed)) = tagged_members.next() else { return Ok(None) };
    if tagged_members.next().is_some() {
        return Err(signature_error("more than one signature has the tag outgate"));
    }
    let signatures = members::parse_all(fields, &SIGNATURE).ok_or(signature_error(SIGNATURES))?;
    let signature = signatures.iter().find(|signature| signature.label == member.label);
    let signature =
        signature.and_then(Member::bytes).ok_or(signature_error("Signature has no byte sequence under its label"))?;
    parse_member(member, &parsed, signature).map(Some)
}

/// Returns the client that the signature for outgate names, without verification.
pub(super) fn unverified_keyid(fields: &Fields) -> Option<String> {
    find_outgate_signature(fields).ok().flatten().map(|signature| signature.keyid)
}

/// A parsed member.
struct ParsedMember {
    list: InnerList,
    /// The strict serialization of the member (RFC 9651 §4.1).
    serialized: Option<String>,
}

impl ParsedMember {
    fn parse(member: &Member<'_>) -> Option<Self> {
        let parsed: Dictionary = Parser::new(member.text).parse().ok()?;
        let serialized = parsed.serialize();
        let Some((_, ListEntry::InnerList(list))) = parsed.into_iter().next() else { return None };
        Some(Self { list, serialized })
    }

    fn has_outgate_tag(&self) -> bool {
        let tag = self.list.params.get("tag").and_then(BareItem::as_string);
        tag.is_some_and(|tag| tag.as_str().as_bytes() == &TAG[1..TAG.len() - 1])
    }
}

fn parse_member<'a>(
    member: &Member<'a>,
    ParsedMember { list, serialized }: &ParsedMember,
    signature: Vec<u8>,
) -> Result<OutgateSignature<'a>, AuthnError> {
    let params = member.text.split_once('=').map_or("", |(_, params)| params);
    // The signature covers the strict serialization (RFC 9421 §2.3). Another serialization, such as one with a
    // duplicate parameter, could be read and verified differently.
    if serialized.as_deref() != Some(member.text) {
        return Err(signature_error("Signature-Input is not written as RFC 9651 §4.1 serializes it"));
    }
    let (mut created, mut expires, mut keyid, mut algorithms) = (None, None, None, ALL_ALGORITHMS);
    for (name, value) in &list.params {
        match (name.as_str(), value) {
            ("created", BareItem::Integer(time)) => created = Some(i64::from(*time)),
            ("expires", BareItem::Integer(time)) => expires = Some(i64::from(*time)),
            ("keyid", BareItem::String(text)) => keyid = Some(text.as_str().to_owned()),
            ("alg", BareItem::String(text)) => {
                algorithms = self::algorithms_of(text.as_str()).ok_or(signature_error("its alg is not supported"))?;
            }
            ("nonce" | "tag", BareItem::String(_)) => {}
            ("created" | "expires" | "keyid" | "alg" | "nonce" | "tag", _) => {
                return Err(signature_error("a parameter is of the wrong type"));
            }
            _ => return Err(signature_error("a parameter is not supported")),
        }
    }
    let mut covered = Vec::with_capacity(list.items.len());
    for item in &list.items {
        let Some(name) = item.bare_item.as_string() else { return Err(signature_error("a component is not a string")) };
        if !item.params.is_empty() {
            return Err(signature_error("a component has parameters: none of sf, key, bs, req, tr, name is supported"));
        }
        covered.push(name.as_str().to_owned());
    }
    let mut names: Vec<&String> = covered.iter().collect();
    names.sort_unstable();
    if !names.is_sorted_by(|one, next| one < next) {
        return Err(signature_error("a component is covered twice"));
    }
    let created = created.ok_or(signature_error("created is missing"))?;
    let keyid = keyid.ok_or(signature_error("keyid, the client's name, is missing"))?;
    Ok(OutgateSignature { label: member.label, covered, params, created, expires, keyid, algorithms, signature })
}

const ALL_ALGORITHMS: &[SignatureAlgorithm] = &[
    SignatureAlgorithm::Ed25519,
    SignatureAlgorithm::EcdsaP256Sha256,
    SignatureAlgorithm::RsaPssSha512,
    SignatureAlgorithm::RsaV15Sha256,
];

/// Returns the algorithms of a registered name (RFC 9421 §6.2), except symmetric ones and those that no client key
/// supports.
fn algorithms_of(name: &str) -> Option<&'static [SignatureAlgorithm]> {
    match name {
        "ed25519" => Some(&[SignatureAlgorithm::Ed25519]),
        "ecdsa-p256-sha256" => Some(&[SignatureAlgorithm::EcdsaP256Sha256]),
        "rsa-pss-sha512" => Some(&[SignatureAlgorithm::RsaPssSha512]),
        "rsa-v1_5-sha256" => Some(&[SignatureAlgorithm::RsaV15Sha256]),
        _ => None,
    }
}

pub(super) fn verify<'c>(
    clients: &'c Clients,
    signature: &OutgateSignature<'_>,
    request: &SignableRequest<'_>,
    now: i64,
) -> Result<(&'c Arc<Client>, VerifiedSignature), AuthnError> {
    check_coverage(&signature.covered, request).map_err(signature_error)?;
    let until = check_validity(signature, now).map_err(signature_error)?;
    let covered = signature.covered.iter().map(String::as_str);
    let base = message::signature_base(covered, signature.params, request).map_err(signature_error)?;
    let body_check = compile_body_check(&signature.covered, request).map_err(signature_error)?;

    let client = clients.by_name.get(signature.keyid.as_str()).ok_or(AuthnError::Invalid)?;
    let mut keys = client.public_keys.iter();
    let algorithm = keys.find_map(|key| key.verify(signature.algorithms, base.as_bytes(), &signature.signature));
    let replay_token =
        ReplayToken { key: algorithm.ok_or(AuthnError::Invalid)?.replay_key(&signature.signature), valid_until: until };
    match body_check {
        Some(body_check) if request.has_body => {
            Ok((client, VerifiedSignature { replay_token, body_check: Some(body_check) }))
        }
        body_check => {
            body_check.map_or(Ok(()), |body_check| body_check.verify(b""))?;
            Ok((client, VerifiedSignature { replay_token, body_check: None }))
        }
    }
}

/// Checks that the signature covers everything outgate acts on. Uncovered parts may change in transit.
fn check_coverage(covered: &[String], request: &SignableRequest<'_>) -> Result<(), &'static str> {
    let covers = |name: &str| covered.iter().any(|covered| covered == name);
    if !covers("@method") {
        return Err("it does not cover @method");
    }
    let is_connect = *request.method == Method::CONNECT;
    if is_connect && !covers("@authority") && !covers("@request-target") {
        return Err("it covers neither @authority nor @request-target, and a CONNECT has no other target");
    }
    if !is_connect && !covers("@target-uri") && !["@authority", "@path", "@query"].into_iter().all(covers) {
        return Err("it covers neither @target-uri nor all of @authority, @path and @query");
    }
    // An attacker could request http instead of https and read the webhook. Without a scheme, a field names the target.
    let covers_scheme = ["@target-uri", "@scheme", "@request-target"].into_iter().any(covers);
    if !is_connect && request.scheme().is_some() && !covers_scheme {
        return Err("it covers neither @target-uri nor @scheme, and the request is in absolute-form");
    }
    if covered.iter().any(|name| request.is_removed_by_connection(name)) {
        return Err(REMOVED_BY_CONNECTION);
    }
    if covered.iter().any(|name| message::is_of_one_hop(name)) {
        return Err(OF_ONE_HOP);
    }
    if request.has_body && !covers(CONTENT_DIGEST.as_str()) {
        return Err("it does not cover content-digest, and the request has a body");
    }
    // These fields select the target and the tenant.
    let is_uncovered = |name: FieldName<'_>| name.starts_with("outgate-") && !covers(&name.to_lowercase());
    if request.fields.iter().any(|(name, _)| is_uncovered(name)) {
        return Err("it does not cover every Outgate- field of the request");
    }
    Ok(())
}

/// Returns the last second in which the signature is valid.
fn check_validity(signature: &OutgateSignature<'_>, now: i64) -> Result<i64, &'static str> {
    if signature.created > now + CLOCK_SKEW {
        return Err("it was created in the future");
    }
    if signature.created < now - SIGNATURE_LIFETIME_MAX {
        return Err("it was created more than 300 seconds ago");
    }
    if signature.expires.is_some_and(|expires| expires <= now) {
        return Err("it has expired");
    }
    let last = signature.created + SIGNATURE_LIFETIME_MAX;
    Ok(signature.expires.map_or(last, |expires| expires.min(last)))
}

/// Returns the check of a covered `Content-Digest` (RFC 9530 §2). Every digest of a known algorithm must match, and at
/// least one must exist.
fn compile_body_check(covered: &[String], request: &SignableRequest<'_>) -> Result<Option<BodyCheck>, &'static str> {
    const FORM: &str = "Content-Digest is malformed, or has neither sha-256 nor sha-512";
    if !covered.iter().any(|name| name == CONTENT_DIGEST.as_str()) {
        return Ok(None);
    }
    let digests = digest::parse(request.fields).ok_or(FORM)?;
    if digests.is_empty() { Err(FORM) } else { Ok(Some(BodyCheck::ContentDigest(digests))) }
}

/// Removes outgate's member from both fields. Other members stay byte for byte.
pub(super) fn remove_outgate_signature(fields: &mut Fields) {
    let Ok(Some(OutgateSignature { label, .. })) = find_outgate_signature(fields) else { return };
    let label = label.to_owned();
    for name in [&SIGNATURE_INPUT, &SIGNATURE] {
        fields.replace_lines(name, |line| remove_member(line, &label));
    }
}

/// Removes a member from a line; `None` if no member remains.
fn remove_member(line: FieldValue<'_>, label: &str) -> Option<HeaderValue> {
    let members = members::parse_line(line)?;
    if !members.iter().any(|member| member.label == label) {
        return HeaderValue::from_bytes(line.as_bytes()).ok();
    }
    let others: Vec<&str> = members.iter().filter(|member| member.label != label).map(|member| member.text).collect();
    if others.is_empty() { None } else { HeaderValue::from_str(&others.join(", ")).ok() }
}

#[cfg(test)]
mod tests;
