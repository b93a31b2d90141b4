//! HTTP message signatures (RFC 9421) that are meant for us: those whose `tag` is "outgate".
//! Did the client sign this very request, just now?

use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use sfv::{BareItem, Dictionary, FieldType, InnerList, ListEntry, Parser};

use super::public_key::SignatureAlgorithm;
use super::{
    AuthnError, BodyCheck, Client, Clients, LIFETIME_MAX, OF_ONE_HOP, REMOVED, ReplayToken, SKEW, SignableRequest,
    VerifiedSignature,
};
use crate::policy::message;
use crate::policy::message::digest::{self, CONTENT_DIGEST};
use crate::policy::message::members::{self, Member};

static SIGNATURE: HeaderName = HeaderName::from_static("signature");
static SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// The tag as it stands in a line that has it: a string has no other form (RFC 9651 §4.1.6). A line without it is none
/// of our business, and is not even read.
const TAG: &[u8] = b"\"outgate\"";

/// A signature for us, and what it says of itself.
pub(super) struct OutgateSignature<'a> {
    label: &'a str,
    /// Component names, in order.
    covered: Vec<String>,
    /// The value of `@signature-params` (RFC 9421 §2.3).
    params: &'a str,
    created: i64,
    expires: Option<i64>,
    keyid: String,
    /// By which of these it may have been made.
    algorithms: &'static [SignatureAlgorithm],
    signature: Vec<u8>,
}

fn fault(why: &'static str) -> AuthnError {
    AuthnError::Signature(why)
}

fn concerns_us(line: &HeaderValue) -> bool {
    memchr::memmem::find(line.as_bytes(), TAG).is_some()
}

/// The one signature of a request that is for us.
pub(super) fn ours(fields: &HeaderMap) -> Result<Option<OutgateSignature<'_>>, AuthnError> {
    if !fields.get_all(&SIGNATURE_INPUT).iter().any(concerns_us) {
        return Ok(None);
    }
    const INPUTS: &str = "Signature-Input is not a dictionary in which each label stands once (RFC 9651 §3.2)";
    const SIGNATURES: &str = "Signature is not a dictionary in which each label stands once (RFC 9651 §3.2)";
    let inputs = members::all(fields, &SIGNATURE_INPUT).ok_or(fault(INPUTS))?;
    let mut ours = inputs.iter().filter_map(|member| Some((member, tagged(member)?)));
    let Some((member, list)) = ours.next() else { return Ok(None) };
    if ours.next().is_some() {
        return Err(fault("more than one has the tag outgate"));
    }
    let signatures = members::all(fields, &SIGNATURE).ok_or(fault(SIGNATURES))?;
    let signature = signatures.iter().find(|signature| signature.label == member.label);
    let signature = signature.and_then(Member::bytes).ok_or(fault("Signature has no byte sequence under its label"))?;
    read(member, &list, signature).map(Some)
}

/// Returns the client's name under the signature that is for us.
pub(super) fn keyid(fields: &HeaderMap) -> Option<String> {
    ours(fields).ok().flatten().map(|ours| ours.keyid)
}

/// The inner list of a member with our tag.
fn tagged(member: &Member<'_>) -> Option<InnerList> {
    let parsed: Dictionary = Parser::new(member.text).parse().ok()?;
    let Some((_, ListEntry::InnerList(list))) = parsed.into_iter().next() else { return None };
    let tag = list.params.get("tag").and_then(BareItem::as_string);
    tag.is_some_and(|tag| tag.as_str().as_bytes() == &TAG[1..TAG.len() - 1]).then_some(list)
}

fn read<'a>(member: &Member<'a>, list: &InnerList, signature: Vec<u8>) -> Result<OutgateSignature<'a>, AuthnError> {
    let params = member.text.split_once('=').map_or("", |(_, params)| params);
    // What is signed is the strict serialization (RFC 9421 §2.3). What is written otherwise, with a parameter twice
    // perhaps, would be one thing to read and another to verify.
    let alone: Dictionary = Parser::new(member.text).parse().map_err(|_| fault("Signature-Input is malformed"))?;
    if alone.serialize().as_deref() != Some(member.text) {
        return Err(fault("Signature-Input is not written as RFC 9651 §4.1 serializes it"));
    }
    let (mut created, mut expires, mut keyid, mut algorithms) = (None, None, None, ANY);
    for (name, value) in &list.params {
        match (name.as_str(), value) {
            ("created", BareItem::Integer(time)) => created = Some(i64::from(*time)),
            ("expires", BareItem::Integer(time)) => expires = Some(i64::from(*time)),
            ("keyid", BareItem::String(text)) => keyid = Some(text.as_str().to_owned()),
            ("alg", BareItem::String(text)) => {
                algorithms = self::algorithms(text.as_str()).ok_or(fault("its alg is not supported"))?;
            }
            ("nonce" | "tag", BareItem::String(_)) => {}
            ("created" | "expires" | "keyid" | "alg" | "nonce" | "tag", _) => {
                return Err(fault("a parameter is of the wrong type"));
            }
            _ => return Err(fault("a parameter is not supported")),
        }
    }
    let mut covered = Vec::with_capacity(list.items.len());
    for item in &list.items {
        let Some(name) = item.bare_item.as_string() else { return Err(fault("a component is not a string")) };
        if !item.params.is_empty() {
            return Err(fault("a component has parameters: none of sf, key, bs, req, tr, name is supported"));
        }
        covered.push(name.as_str().to_owned());
    }
    let mut names: Vec<&String> = covered.iter().collect();
    names.sort_unstable();
    if !names.is_sorted_by(|one, next| one < next) {
        return Err(fault("a component is covered twice"));
    }
    let created = created.ok_or(fault("created is missing"))?;
    let keyid = keyid.ok_or(fault("keyid, the client's name, is missing"))?;
    Ok(OutgateSignature { label: member.label, covered, params, created, expires, keyid, algorithms, signature })
}

const ANY: &[SignatureAlgorithm] = &[
    SignatureAlgorithm::Ed25519,
    SignatureAlgorithm::EcdsaP256Sha256,
    SignatureAlgorithm::RsaPssSha512,
    SignatureAlgorithm::RsaV15Sha256,
];

/// The registry of RFC 9421 §6.2, without what is symmetric and what no client may have a key for.
fn algorithms(name: &str) -> Option<&'static [SignatureAlgorithm]> {
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
    ours: &OutgateSignature<'_>,
    sent: &SignableRequest<'_>,
    now: i64,
) -> Result<(&'c Arc<Client>, VerifiedSignature), AuthnError> {
    covers_enough(&ours.covered, sent).map_err(fault)?;
    let until = in_time(ours, now).map_err(fault)?;
    let covered = ours.covered.iter().map(String::as_str);
    let base = message::base(covered, ours.params, sent).map_err(fault)?;
    let pledge = compile_body_check(&ours.covered, sent).map_err(fault)?;

    let client = clients.by_name.get(ours.keyid.as_str()).ok_or(AuthnError::Invalid)?;
    let mut keys = client.public_keys.iter();
    let algorithm = keys.find_map(|key| key.verify(ours.algorithms, base.as_bytes(), &ours.signature));
    let once = ReplayToken { key: algorithm.ok_or(AuthnError::Invalid)?.identity(&ours.signature), until };
    match pledge {
        Some(pledge) if sent.has_body => Ok((client, VerifiedSignature { once, body_check: Some(pledge) })),
        pledge => {
            pledge.map_or(Ok(()), |pledge| pledge.verify(b""))?;
            Ok((client, VerifiedSignature { once, body_check: None }))
        }
    }
}

/// What is not covered may be changed on the way, and must not matter to us.
fn covers_enough(covered: &[String], sent: &SignableRequest<'_>) -> Result<(), &'static str> {
    let covers = |name: &str| covered.iter().any(|covered| covered == name);
    if !covers("@method") {
        return Err("it does not cover @method");
    }
    let is_connect = *sent.method == Method::CONNECT;
    if is_connect && !covers("@authority") && !covers("@request-target") {
        return Err("it covers neither @authority nor @request-target, and a CONNECT has nothing else");
    }
    if !is_connect && !covers("@target-uri") && !["@authority", "@path", "@query"].into_iter().all(covers) {
        return Err("it covers neither @target-uri nor all of @authority, @path and @query");
    }
    // An attacker could ask for http instead of https, and read what the target's name was to protect. Without a scheme,
    // the target stands in a field.
    let covers_scheme = ["@target-uri", "@scheme", "@request-target"].into_iter().any(covers);
    if !is_connect && sent.scheme().is_some() && !covers_scheme {
        return Err("it covers neither @target-uri nor @scheme, and the request is in absolute-form");
    }
    if covered.iter().any(|name| sent.is_removed_by_connection(name)) {
        return Err(REMOVED);
    }
    if covered.iter().any(|name| message::is_of_one_hop(name)) {
        return Err(OF_ONE_HOP);
    }
    if sent.has_body && !covers(CONTENT_DIGEST.as_str()) {
        return Err("it does not cover content-digest, and the request has a body");
    }
    // Where to, over what, and for whom.
    let is_uncovered = |name: &HeaderName| name.as_str().starts_with("outgate-") && !covers(name.as_str());
    if sent.fields.keys().any(is_uncovered) {
        return Err("it does not cover every Outgate- field of the request");
    }
    Ok(())
}

/// The last second that it is good for.
fn in_time(ours: &OutgateSignature<'_>, now: i64) -> Result<i64, &'static str> {
    if ours.created > now + SKEW {
        return Err("it was created in the future");
    }
    if ours.created < now - LIFETIME_MAX {
        return Err("it was created more than 300 seconds ago");
    }
    if ours.expires.is_some_and(|expires| expires <= now) {
        return Err("it has expired");
    }
    let last = ours.created + LIFETIME_MAX;
    Ok(ours.expires.map_or(last, |expires| expires.min(last)))
}

/// RFC 9530 §2, if it is covered: every digest that we know must fit, and one of them must be there.
fn compile_body_check(covered: &[String], sent: &SignableRequest<'_>) -> Result<Option<BodyCheck>, &'static str> {
    const FORM: &str = "Content-Digest is malformed, or has neither sha-256 nor sha-512";
    if !covered.iter().any(|name| name == CONTENT_DIGEST.as_str()) {
        return Ok(None);
    }
    let digests = digest::of(sent.fields).ok_or(FORM)?;
    if digests.is_empty() { Err(FORM) } else { Ok(Some(BodyCheck::ContentDigest(digests))) }
}

/// Takes our member out of both fields; the others stay byte for byte.
pub(super) fn take_out(fields: &mut HeaderMap) {
    let Ok(Some(OutgateSignature { label, .. })) = ours(fields) else { return };
    let label = label.to_owned();
    for name in [&SIGNATURE_INPUT, &SIGNATURE] {
        let lines: Vec<_> = fields.get_all(name).iter().filter_map(|line| without(line, &label)).collect();
        fields.remove(name);
        fields.extend(lines.into_iter().map(|line| (name.clone(), line)));
    }
}

/// `None`: nothing is left of the line.
fn without(line: &HeaderValue, label: &str) -> Option<HeaderValue> {
    let members = members::of(line)?;
    if !members.iter().any(|member| member.label == label) {
        return Some(line.clone());
    }
    let others: Vec<&str> = members.iter().filter(|member| member.label != label).map(|member| member.text).collect();
    if others.is_empty() { None } else { HeaderValue::from_str(&others.join(", ")).ok() }
}

#[cfg(test)]
mod tests;
