//! What a target must prove: a chain to which roots, over which version of TLS.
//! Whose word is good enough for this target?

use std::collections::BTreeMap;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use rustls::RootCertStore;
use rustls_pki_types::CertificateDer;

use crate::config::{self, At, Config, Problem, Roots, TlsVersion, Verify};
use crate::names::TrustName;

/// The trust of a route that names none.
pub const PUBLIC: &str = "public";

/// A trust policy, compiled.
#[derive(Debug)]
pub struct Trust {
    pub name: TrustName,
    /// SHA-256 over all that makes a connection acceptable here, and over nothing else: connections and TLS sessions
    /// may be shared exactly where it is equal. The name is not part of it.
    pub fingerprint: [u8; 32],
    pub roots: Arc<RootCertStore>,
    pub min_version: TlsVersion,
    pub verify: Verify,
}

/// Every `[trust.NAME]`; `public` is there whether it is configured or not.
pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> BTreeMap<TrustName, Arc<Trust>> {
    let mut trusts: BTreeMap<_, _> = config
        .trust
        .iter()
        .map(|(name, trust)| {
            let roots = store(name, trust, problems);
            warn_unverified(name, &trust.verify, problems);
            (name.clone(), Arc::new(Trust::new(name.clone(), roots, trust.min_version, *trust.verify)))
        })
        .collect();
    let public = TrustName::new(PUBLIC);
    trusts
        .entry(public.clone())
        .or_insert_with(|| Arc::new(Trust::new(public, mozilla(), TlsVersion::V1_2, Verify::Full)));
    trusts
}

impl Trust {
    fn new(name: TrustName, roots: RootCertStore, min_version: TlsVersion, verify: Verify) -> Self {
        let fingerprint = fingerprint(&roots, min_version, verify);
        Self { name, fingerprint, roots: Arc::new(roots), min_version, verify }
    }
}

fn mozilla() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

fn store(name: &TrustName, trust: &At<config::Trust>, problems: &mut Vec<Problem>) -> RootCertStore {
    let mut store = RootCertStore::empty();
    for roots in &trust.roots {
        match &roots.value {
            Roots::Mozilla => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            // A distribution's store may hold a certificate that no verifier takes; the rest of it is good.
            Roots::System(certificates) => {
                let (usable, _) = store.add_parsable_certificates(certificates.iter().map(|der| der.as_slice().into()));
                if usable == 0 {
                    problems.push(
                        Problem::at(roots.place, "the system's store holds no usable root certificate")
                            .help("install ca-certificates, or write \"mozilla\" for the roots compiled in"),
                    );
                }
            }
            Roots::File(path, certificates) => {
                if certificates.is_empty() {
                    problems.push(
                        Problem::at(roots.place, format!("{} holds no certificate", path.display()))
                            .help("a PEM file with one or more CERTIFICATE blocks"),
                    );
                }
                for (index, der) in certificates.iter().enumerate() {
                    if let Err(error) = store.add(CertificateDer::from_slice(der)) {
                        let number = index + 1;
                        problems.push(
                            Problem::at(
                                roots.place,
                                format!("certificate {number} of {} is not usable as a root: {error}", path.display()),
                            )
                            .help("an X.509 certificate of a certification authority"),
                        );
                    }
                }
            }
        }
    }
    if trust.roots.is_empty() && *trust.verify == Verify::Full {
        problems.push(
            Problem::at(trust.place, format!("trust {name} has no roots: no target could prove its name"))
                .help("roots = [\"mozilla\"]"),
        );
    }
    store
}

fn warn_unverified(name: &TrustName, verify: &At<Verify>, problems: &mut Vec<Problem>) {
    if verify.value == Verify::None {
        problems.push(
            Problem::warning(
                Some(verify.place),
                format!(
                    "trust {name} verifies nothing: webhooks on its routes go to whoever answers, and anyone on the \
                     path can read and change them"
                ),
            )
            .help("verify = \"full\", and the target's own authority as a PEM file in roots"),
        );
    }
}

/// The roots count as a set: neither their order nor where they were read from says whom they trust.
fn fingerprint(roots: &RootCertStore, min_version: TlsVersion, verify: Verify) -> [u8; 32] {
    let mut anchors: Vec<_> = roots
        .roots
        .iter()
        .map(|anchor| {
            let constraints = anchor.name_constraints.as_deref();
            (anchor.subject.as_ref(), anchor.subject_public_key_info.as_ref(), constraints)
        })
        .collect();
    anchors.sort_unstable();
    anchors.dedup();

    let mut digest = Context::new(&SHA256);
    digest.update(b"outgate trust\0");
    digest.update(&[
        match min_version {
            TlsVersion::V1_2 => 2,
            TlsVersion::V1_3 => 3,
        },
        match verify {
            Verify::Full => 1,
            Verify::None => 0,
        },
    ]);
    for (subject, key, constraints) in anchors {
        // Each part after its length, so that no two sets of roots read alike.
        for part in [Some(subject), Some(key), constraints] {
            digest.update(&part.map_or(u64::MAX, |part| part.len() as u64).to_be_bytes());
            digest.update(part.unwrap_or_default());
        }
    }
    let mut fingerprint = [0; 32];
    fingerprint.copy_from_slice(digest.finish().as_ref());
    fingerprint
}

#[cfg(test)]
mod tests;
