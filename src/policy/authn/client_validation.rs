//! Twilio's public key client validation: a JSON Web Token with a hash of the request.
//! Did the client sign this request, just now?

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::public_key::SignatureAlgorithm;
use super::{
    AuthnError, BodyCheck, CLOCK_SKEW, Client, Clients, OF_ONE_HOP, REMOVED_BY_CONNECTION, ReplayToken,
    SIGNATURE_LIFETIME_MAX, SignableRequest, VerifiedSignature, canonical,
};
use crate::policy::message;

/// The maximum length of a token. The signature of an 8192-bit key takes 1366 characters; the rest names a few fields.
const TOKEN_MAX: usize = 8192;

/// The JOSE header (RFC 7515 §4). `kid` is ignored: `iss` names the client, and a token does not choose among the
/// client's keys.
#[derive(Deserialize)]
struct Header {
    alg: String,
    cty: String,
    typ: Option<String>,
    /// Critical extensions (§4.1.11). None is supported.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    /// The start of the validity, which only the Python library sends.
    nbf: Option<i64>,
    /// The names of the signed fields.
    hrh: String,
    /// The hash of the request.
    rqh: String,
}

pub(super) fn verify<'c>(
    clients: &'c Clients,
    token: &[u8],
    request: &SignableRequest<'_>,
    now: i64,
) -> Result<(&'c Arc<Client>, VerifiedSignature), AuthnError> {
    let signature_error = |reason| AuthnError::Signature(reason);
    const FORM: &str = "Twilio-Client-Validation is not a JSON Web Token of header, claims and signature";
    let (signed, signature) = split(token).ok_or(signature_error(FORM))?;
    let (header, claims) = signed.split_once('.').ok_or(signature_error(FORM))?;
    let header: Header = decode_part(header).ok_or(signature_error(FORM))?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| signature_error(FORM))?;
    let algorithm = match header.alg.as_str() {
        "RS256" => SignatureAlgorithm::RsaV15Sha256,
        "PS256" => SignatureAlgorithm::RsaPssSha256,
        _ => return Err(signature_error("alg is neither RS256 nor PS256")),
    };
    if header.cty != "twilio-pkrv;v=1" {
        return Err(signature_error("cty is not twilio-pkrv;v=1"));
    }
    if header.crit.is_some() || header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
        return Err(signature_error("the token's header has crit, or a typ other than JWT"));
    }
    let claims: Claims =
        decode_part(claims).ok_or(signature_error("iss, exp, hrh or rqh is missing or of another type"))?;
    let names = covered_names(&claims.hrh, request).map_err(signature_error)?;
    check_validity(&claims, now).map_err(signature_error)?;
    if !canonical::is_sorted(request) {
        return Err(signature_error(
            "the query's parameters are not sorted, so the request hash does not cover their order",
        ));
    }
    let texts = canonical::signed_texts(request, &names)
        .ok_or(signature_error("hrh names a field that the request does not have"))?;

    let client = clients.by_name.get(claims.iss.as_str()).ok_or(AuthnError::Invalid)?;
    let verifies = |key: &super::VerifyingKey| key.verify(&[algorithm], signed.as_bytes(), &signature).is_some();
    if !client.public_keys.iter().any(verifies) {
        return Err(AuthnError::Invalid);
    }
    let replay_token = ReplayToken { key: algorithm.replay_key(&signature), valid_until: claims.exp };
    let body_check = BodyCheck::RequestHash { texts, expected: claims.rqh };
    if request.has_body {
        return Ok((client, VerifiedSignature { replay_token, body_check: Some(body_check) }));
    }
    body_check.verify(b"")?;
    Ok((client, VerifiedSignature { replay_token, body_check: None }))
}

/// Returns the client that a token names, without verification.
pub(super) fn unverified_issuer(token: &[u8]) -> Option<String> {
    let (signed, _) = split(token)?;
    decode_part::<Claims>(signed.split_once('.')?.1).map(|claims| claims.iss)
}

/// Splits a token into the signed part and the signature.
fn split(token: &[u8]) -> Option<(&str, &str)> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    std::str::from_utf8(token).ok()?.rsplit_once('.')
}

/// Decodes a part of the token. A duplicate member is an error, since two readers could take different values.
fn decode_part<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// Returns the names of the signed fields. They must include the target: `Host`, which must match the request target,
/// or the field that names the target. The tenant may be unsigned, since the libraries sign only `authorization;host`.
fn covered_names<'n>(hrh: &'n str, request: &SignableRequest<'_>) -> Result<Vec<&'n str>, &'static str> {
    let names: Vec<&str> = hrh.split(';').collect();
    let is_lower = |name: &&str| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if !names.is_sorted_by(|one, next| one < next) || !names.iter().all(is_lower) {
        return Err("hrh is not a sorted list of different names in lower case");
    }
    if !names.contains(&"host") {
        return Err("hrh does not name host");
    }
    if request.fields.contains("authorization") && !names.contains(&"authorization") {
        return Err("hrh does not name authorization");
    }
    if request.fields.contains("outgate-target") && !names.contains(&"outgate-target") {
        return Err("hrh does not name outgate-target");
    }
    if names.iter().any(|name| request.is_removed_by_connection(name)) {
        return Err(REMOVED_BY_CONNECTION);
    }
    if names.iter().any(|name| message::is_of_one_hop(name)) {
        return Err(OF_ONE_HOP);
    }
    if !request.host_matches_target() {
        return Err("the signed Host differs from the request's target");
    }
    Ok(names)
}

fn check_validity(claims: &Claims, now: i64) -> Result<(), &'static str> {
    if claims.exp <= now {
        return Err("it has expired");
    }
    if claims.exp.saturating_sub(now) > SIGNATURE_LIFETIME_MAX + CLOCK_SKEW {
        return Err("it expires later than in 300 seconds");
    }
    if claims.nbf.is_some_and(|from| from.saturating_sub(now) > CLOCK_SKEW) {
        return Err("it is not valid yet");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
