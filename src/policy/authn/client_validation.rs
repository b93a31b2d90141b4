//! Twilio's public key client validation: a JSON Web Token that says which request it was made for.
//! Did the client sign this very request, just now?

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::{DeserializeOwned, IgnoredAny};

use super::public_key::SignatureAlgorithm;
use super::{
    AuthnError, BodyCheck, Client, Clients, LIFETIME_MAX, OF_ONE_HOP, REMOVED, ReplayToken, SKEW, SignableRequest,
    VerifiedSignature, canonical,
};
use crate::policy::message;

/// A key of 8192 bits signs 1366 characters; the rest names a few fields.
const TOKEN_MAX: usize = 8192;

/// RFC 7515 §4. `kid` is not read: whose key it is says `iss`, and a token does not choose among the client's keys.
#[derive(Deserialize)]
struct Header {
    alg: String,
    cty: String,
    typ: Option<String>,
    /// Extensions that must be understood (§4.1.11): we know none.
    crit: Option<IgnoredAny>,
}

#[derive(Deserialize)]
struct Claims {
    iss: String,
    exp: i64,
    /// From Python's library alone.
    nbf: Option<i64>,
    /// Names of the fields that were signed.
    hrh: String,
    /// The hash of the request.
    rqh: String,
}

pub(super) fn verify<'c>(
    clients: &'c Clients,
    token: &[u8],
    sent: &SignableRequest<'_>,
    now: i64,
) -> Result<(&'c Arc<Client>, VerifiedSignature), AuthnError> {
    let fault = |why| AuthnError::Signature(why);
    const FORM: &str = "Twilio-Client-Validation is not a JSON Web Token of header, claims and signature";
    let (signed, signature) = split(token).ok_or(fault(FORM))?;
    let (header, claims) = signed.split_once('.').ok_or(fault(FORM))?;
    let header: Header = part(header).ok_or(fault(FORM))?;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| fault(FORM))?;
    let algorithm = match header.alg.as_str() {
        "RS256" => SignatureAlgorithm::RsaV15Sha256,
        "PS256" => SignatureAlgorithm::RsaPssSha256,
        _ => return Err(fault("alg is neither RS256 nor PS256")),
    };
    if header.cty != "twilio-pkrv;v=1" {
        return Err(fault("cty is not twilio-pkrv;v=1"));
    }
    if header.crit.is_some() || header.typ.is_some_and(|typ| !typ.eq_ignore_ascii_case("JWT")) {
        return Err(fault("the token's header asks for what is not supported"));
    }
    let claims: Claims = part(claims).ok_or(fault("iss, exp, hrh or rqh is missing or of another type"))?;
    let names = covered(&claims.hrh, sent).map_err(fault)?;
    in_time(&claims, now).map_err(fault)?;
    if !canonical::is_sorted(sent) {
        return Err(fault("the query's parameters are not sorted, and the request hash does not cover their order"));
    }
    let texts = canonical::texts(sent, &names).ok_or(fault("hrh names a field that the request does not have"))?;

    let client = clients.by_name.get(claims.iss.as_str()).ok_or(AuthnError::Invalid)?;
    let verifies = |key: &super::VerifyingKey| key.verify(&[algorithm], signed.as_bytes(), &signature).is_some();
    if !client.public_keys.iter().any(verifies) {
        return Err(AuthnError::Invalid);
    }
    let once = ReplayToken { key: algorithm.identity(&signature), until: claims.exp };
    let pledge = BodyCheck::RequestHash { texts, expected: claims.rqh };
    if sent.has_body {
        return Ok((client, VerifiedSignature { once, body_check: Some(pledge) }));
    }
    pledge.verify(b"")?;
    Ok((client, VerifiedSignature { once, body_check: None }))
}

/// Returns the client's name in a token, whatever else is wrong with it.
pub(super) fn issuer(token: &[u8]) -> Option<String> {
    let (signed, _) = split(token)?;
    part::<Claims>(signed.split_once('.')?.1).map(|claims| claims.iss)
}

/// What was signed, and the signature.
fn split(token: &[u8]) -> Option<(&str, &str)> {
    if token.len() > TOKEN_MAX {
        return None;
    }
    std::str::from_utf8(token).ok()?.rsplit_once('.')
}

/// A member that is there twice is an error: two readers could take different ones.
fn part<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()
}

/// The signed fields. They must say where the request goes: `Host`, which says the same as the target, or the field
/// that names the target. Whose webhook it is may be left out: the libraries sign `authorization;host` and no more.
fn covered<'n>(hrh: &'n str, sent: &SignableRequest<'_>) -> Result<Vec<&'n str>, &'static str> {
    let names: Vec<&str> = hrh.split(';').collect();
    let is_lower = |name: &&str| !name.is_empty() && !name.bytes().any(|byte| byte.is_ascii_uppercase());
    if !names.is_sorted_by(|one, next| one < next) || !names.iter().all(is_lower) {
        return Err("hrh is not a sorted list of different names in lower case");
    }
    if !names.contains(&"host") {
        return Err("hrh does not name host");
    }
    if sent.fields.contains_key("authorization") && !names.contains(&"authorization") {
        return Err("hrh does not name authorization");
    }
    if sent.fields.contains_key("outgate-target") && !names.contains(&"outgate-target") {
        return Err("hrh does not name outgate-target");
    }
    if names.iter().any(|name| sent.is_removed_by_connection(name)) {
        return Err(REMOVED);
    }
    if names.iter().any(|name| message::is_of_one_hop(name)) {
        return Err(OF_ONE_HOP);
    }
    if !sent.host_agrees() {
        return Err("the target that was signed, in Host, is not the request's");
    }
    Ok(names)
}

fn in_time(claims: &Claims, now: i64) -> Result<(), &'static str> {
    if claims.exp <= now {
        return Err("it has expired");
    }
    if claims.exp.saturating_sub(now) > LIFETIME_MAX + SKEW {
        return Err("it expires later than in 300 seconds");
    }
    if claims.nbf.is_some_and(|from| from.saturating_sub(now) > SKEW) {
        return Err("it is not valid yet");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
