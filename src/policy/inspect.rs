//! The certificate authority that issues the certificates of inspected tunnels.
//! Is this authority able to issue certificates that the clients of outgate trust?

use jiff::Timestamp;
use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::expiry::certificate_timestamp;
use crate::config::WarningCode;
use crate::config::{Ca, Config, ConnectPolicy, Located, Problem};
use crate::digest::sha256;

pub struct InspectionCa {
    /// SHA-256 of the chain. Leaf certificates are cached by this fingerprint, so a change of the authority invalidates
    /// them.
    pub fingerprint: [u8; 32],
    pub issuer: Issuer<'static, KeyPair>,
    /// The certificates that follow each leaf: the authority, and the intermediates up to the root that clients trust.
    pub chain: Vec<CertificateDer<'static>>,
    /// The end of the authority's validity. No leaf is valid for longer.
    pub expires_at: Timestamp,
}

pub fn compile(config: &Config, now: Timestamp, problems: &mut Vec<Problem>) -> Option<InspectionCa> {
    let inspects = |connect: &&Located<ConnectPolicy>| connect.value == ConnectPolicy::Inspect;
    let inspecting = config.routes.iter().find_map(|route| route.connect.as_ref().filter(inspects));
    match (&config.server.ca, inspecting) {
        (None, Some(connect)) => {
            let problem = Problem::at(
                connect.span,
                "`connect = \"inspect\"` requires an authority, and `server.ca` is not configured",
            );
            let help = "add server.ca = { certificate = \"ca.pem\", key = \"ca.key\" }; `outgate ca new` makes them";
            problems.push(problem.help(help));
            None
        }
        (None, None) => None,
        (Some(ca), inspecting) => {
            if inspecting.is_none() {
                problems.push(Problem::warning(
                    WarningCode::Unused,
                    Some(ca.span),
                    "no route has `connect = \"inspect\"`, so this authority is unused",
                ));
            }
            compile_ca(ca, now, problems)
        }
    }
}

fn compile_ca(ca: &Located<Ca>, now: Timestamp, problems: &mut Vec<Problem>) -> Option<InspectionCa> {
    let mut report = |place, message: String, help: &str| {
        problems.push(Problem::at(place, message).help(help));
        None
    };
    let place = ca.certificate.span;
    let path = ca.certificate.path.display();
    let der = ca.certificate.parts.first()?;
    let Ok((_, certificate)) = X509Certificate::from_der(der) else {
        return report(
            place,
            format!("the first certificate of {path} cannot be read"),
            "write the path of an X.509 certificate",
        );
    };
    if !certificate.is_ca() {
        let help = "use the certificate of an authority (CA:TRUE), as `outgate ca new` makes it";
        return report(place, format!("the first certificate of {path} may not sign certificates"), help);
    }
    let expires_at = certificate_timestamp(certificate.validity().not_after.timestamp());
    if expires_at < now {
        return report(
            place,
            format!("the authority expired at {expires_at}: clients would trust no certificate that it issues"),
            "make another authority with `outgate ca new`",
        );
    }
    let pem = std::str::from_utf8(ca.key.expose()).ok();
    let Some(key) = pem.and_then(|pem| KeyPair::from_pem(pem).ok()) else {
        let help =
            "write the path of a file with a PRIVATE KEY block (PKCS #8) of ECDSA, Ed25519 or RSA, not encrypted";
        return report(ca.key.span, "no private key that can sign was found".to_owned(), help);
    };
    if key.der_bytes() != &*certificate.public_key().subject_public_key.data {
        let problem = Problem::at(ca.key.span, "the key does not match the certificate");
        problems.push(
            problem.related(place, "the certificate is here").help("use the key of the first certificate of the file"),
        );
        return None;
    }
    let Ok(issuer) = Issuer::from_ca_cert_der(&CertificateDer::from_slice(der), key) else {
        return report(
            place,
            format!("the first certificate of {path} is not usable"),
            "use a certificate that `outgate ca new` made",
        );
    };
    let fingerprint = sha256(&ca.certificate.parts.concat());
    let chain = ca.certificate.parts.iter().map(|der| CertificateDer::from(der.clone())).collect();
    Some(InspectionCa { fingerprint, issuer, chain, expires_at })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{PemFile, Secret};
    use crate::policy::fixture::pki::{Authority, NOW, date};
    use crate::policy::fixture::{at, messages};

    /// Compiles the authority with this certificate and the key of another one, and returns the problems.
    fn problems_of(certificate: &[u8], key: &Authority, now: i64) -> Vec<String> {
        let certificate = at(1, PemFile { path: PathBuf::from("ca.pem"), parts: vec![certificate.to_vec()] });
        let key = at(2, Secret::new(key.issuer.key().serialize_pem().into_bytes()));
        let mut problems = Vec::new();
        let compiled = compile_ca(&at(0, Ca { certificate, key }), Timestamp::from_second(now).unwrap(), &mut problems);
        assert_eq!(compiled.is_some(), problems.is_empty());
        messages(&problems)
    }

    #[test]
    fn inspection_needs_an_authority_that_is_valid_and_has_its_key() {
        let root = Authority::root_with("root", |params| params.not_after = date(NOW));
        let expired =
            "the authority expired at 2027-01-10T00:00:00Z: clients would trust no certificate that it issues";
        assert_eq!(problems_of(&root.der, &root, NOW - 1), [""; 0]);
        assert_eq!(problems_of(&root.der, &root, NOW), [""; 0], "it is valid in its last second");
        assert_eq!(problems_of(&root.der, &root, NOW + 1), [expired]);
        let other = Authority::root("other");
        assert_eq!(problems_of(&root.der, &other, NOW), ["the key does not match the certificate"]);
        let leaf = root.leaf(|_| {});
        let no_authority = "the first certificate of ca.pem may not sign certificates";
        assert_eq!(problems_of(&leaf, &root, NOW), [no_authority]);
        assert_eq!(problems_of(&[0], &root, NOW), ["the first certificate of ca.pem cannot be read"]);
    }
}
