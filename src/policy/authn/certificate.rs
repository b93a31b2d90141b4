//! Authentication by the subject alternative names of a client certificate, which TLS has verified.
//! Which client has this certificate?

use std::net::IpAddr;
use std::sync::Arc;

use super::{AuthnError, Client, Clients};
use crate::host;
use crate::names::Host;

/// Returns the client of these names; `None` if no client has any of them.
pub(super) fn authenticate<'c>(clients: &'c Clients, names: &[String]) -> Result<Option<&'c Arc<Client>>, AuthnError> {
    let mut matches = names.iter().filter_map(|name| clients.by_certificate.get(name));
    let Some(client) = matches.next() else { return Ok(None) };
    if matches.all(|other| Arc::ptr_eq(other, client)) { Ok(Some(client)) } else { Err(AuthnError::Conflicting) }
}

/// Returns a subject alternative name of the configuration in the form that connections report. Addresses and DNS names
/// are canonical; URIs and e-mail addresses stay unchanged (RFC 5280 §4.2.1.6).
pub(super) fn canonical_san(written: &str) -> Result<String, &'static str> {
    if let Ok(address) = written.parse::<IpAddr>() {
        return Ok(address.to_string());
    }
    if !written.is_ascii() {
        return Err("a certificate carries ASCII only: write the encoded form");
    }
    if let Some((scheme, rest)) = written.split_once(':') {
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
        return match scheme {
            "DNS" | "URI" | "IP" | "email" => Err("write the name without its type"),
            _ if is_scheme && !rest.is_empty() => Ok(written.to_owned()),
            _ => Err("not a DNS name, URI, e-mail or IP address"),
        };
    }
    if let Some((local, domain)) = written.split_once('@') {
        let is_whole = !local.is_empty() && !domain.is_empty() && !domain.contains('@');
        return if is_whole { Ok(written.to_owned()) } else { Err("not an e-mail address") };
    }
    if written.contains('*') {
        // A pattern would authenticate every holder of a certificate for a name below it.
        return Err("this is a pattern: write each name in full");
    }
    match host::canonical(written) {
        Ok(Host::Name(name)) => Ok(name.to_string()),
        Ok(Host::Ip(_)) | Err(_) => Err("not a DNS name, URI, e-mail or IP address"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificate_names_are_canonicalised_or_refused() {
        for (written, expected) in [
            ("billing.internal", Some("billing.internal")),
            ("Billing.Internal", Some("billing.internal")),
            ("billing", Some("billing")),
            ("spiffe://acme.example/ns/Prod/sa/billing", Some("spiffe://acme.example/ns/Prod/sa/billing")),
            ("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6", Some("urn:uuid:f81d4fae-7dec-11d0-a765-00a0c91e6bf6")),
            ("Billing@acme.example", Some("Billing@acme.example")),
            ("192.0.2.1", Some("192.0.2.1")),
            ("2001:DB8:0::1", Some("2001:db8::1")),
            ("*.internal", None),
            ("DNS:billing.internal", None),
            ("URI:spiffe://acme.example/x", None),
            ("@acme.example", None),
            ("a@b@c", None),
            ("1x:y", None),
            ("spiffe:", None),
            ("spiffe://acme.example/ü", None),
            ("bill ing", None),
            ("192.0.2.999", None),
        ] {
            assert_eq!(canonical_san(written).ok().as_deref(), expected, "{written}");
        }
    }
}
