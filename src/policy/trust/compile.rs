//! The compilation of `[trust.NAME]` into trust policies, with their problems.
//! Is this trust policy valid, and where is it weak?

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::super::anchors::{Anchors, Purpose};
use super::super::certified_key::load_certified_key;
use super::super::{revocation, signed_der};
use super::{FingerprintInput, PUBLIC_TRUST, Trust, fingerprint};
use crate::config::WarningCode;
use crate::config::{self, Config, CrlPolicy, Located, Problem, Roots, TlsVersion, VerifyMode};
use crate::names::TrustName;

/// Compiles every `[trust.NAME]`. `public` exists whether it is configured or not.
pub fn compile(config: &Config, problems: &mut Vec<Problem>) -> BTreeMap<TrustName, Arc<Trust>> {
    let provider = aws_lc_rs::default_provider();
    let mut trusts: BTreeMap<_, _> = config
        .trust
        .iter()
        .map(|(name, written)| (name.clone(), Arc::new(compile_trust(name, written, &provider, problems))))
        .collect();
    trusts.entry(TrustName::new(PUBLIC_TRUST)).or_insert_with(|| Arc::new(public_trust(&provider)));
    trusts
}

pub(super) fn compile_trust(
    name: &TrustName,
    written: &Located<config::Trust>,
    provider: &CryptoProvider,
    problems: &mut Vec<Problem>,
) -> Trust {
    let (roots, anchors) = compile_roots(name, written, problems);
    let intermediates = compile_intermediates(written, problems);
    match *written.verify {
        VerifyMode::Full => warn_ineffective_settings(&roots, written, problems),
        VerifyMode::None => warn_unverified(name, written, problems),
    }
    let pins = compile_pins(written, problems);
    let crls = revocation::compile(&written.crls, problems);
    if *written.verify == VerifyMode::Full && !crls.is_empty() {
        let has_list = |subject: &[u8]| crls.iter().any(|list| list.issuer() == subject);
        warn_missing_crls(&roots, written, &has_list, problems);
    }
    let identity = written.identity.as_ref().and_then(|identity| {
        warn_identity_usage(identity, problems);
        load_certified_key(&identity.certificate, &identity.key, provider, problems)
    });
    let only_mozilla = written.roots.iter().all(|roots| matches!(roots.value, Roots::Mozilla));
    let strict = written.strict.as_ref().map_or(only_mozilla, |strict| strict.value);
    let input = FingerprintInput {
        roots: &roots,
        anchors: &anchors,
        intermediates: intermediates.iter().map(|der| der.as_ref()).collect(),
        min_version: written.min_version,
        verify: *written.verify,
        strict,
        pins: &pins,
        crls: written.crls.iter().flat_map(|file| file.parts.iter().map(Vec::as_slice)).collect(),
        crl_policy: written.crl_policy(),
        identity: identity.as_ref(),
    };
    Trust {
        name: name.clone(),
        fingerprint: fingerprint(&input),
        min_version: written.min_version,
        verify: *written.verify,
        strict,
        crl_policy: written.crl_policy(),
        identity: identity.map(Arc::new),
        crls,
        algorithms: provider.signature_verification_algorithms,
        roots: Arc::new(roots),
        anchors,
        intermediates,
        pins,
    }
}

/// Returns the policy `public` of an empty configuration.
fn public_trust(provider: &CryptoProvider) -> Trust {
    Trust::with_roots(mozilla_roots(), TlsVersion::V1_2, VerifyMode::Full, true, provider)
}

impl Trust {
    /// Returns a policy without pins, revocation lists and identity.
    pub(crate) fn with_roots(
        roots: RootCertStore,
        min_version: TlsVersion,
        verify: VerifyMode,
        strict: bool,
        provider: &CryptoProvider,
    ) -> Self {
        let (pins, crl_policy) = (BTreeSet::new(), CrlPolicy::Require);
        let (crls, identity, anchors, intermediates) = (Vec::new(), None, Anchors::default(), Vec::new());
        let input = FingerprintInput {
            roots: &roots,
            anchors: &anchors,
            intermediates,
            min_version,
            verify,
            strict,
            pins: &pins,
            crls,
            crl_policy,
            identity,
        };
        Self {
            name: TrustName::new(PUBLIC_TRUST),
            fingerprint: fingerprint(&input),
            min_version,
            verify,
            strict,
            crl_policy,
            identity: None,
            crls: Vec::new(),
            algorithms: provider.signature_verification_algorithms,
            roots: Arc::new(roots),
            anchors,
            intermediates: Vec::new(),
            pins,
        }
    }
}

pub(super) fn mozilla_roots() -> RootCertStore {
    webpki_roots::TLS_SERVER_ROOTS.iter().cloned().collect()
}

pub(super) fn compile_roots(
    name: &TrustName,
    trust: &Located<config::Trust>,
    problems: &mut Vec<Problem>,
) -> (RootCertStore, Anchors) {
    let (mut store, mut anchors) = (RootCertStore::empty(), Anchors::default());
    for roots in &trust.roots {
        match &roots.value {
            Roots::Mozilla => store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned()),
            // A distribution's store may hold a certificate that verifiers reject; its other certificates are usable.
            Roots::System(certificates) => {
                let add = |der: &Vec<u8>| anchors.add(der, Purpose::Servers, &mut store).is_ok();
                if certificates.iter().map(add).filter(|is_usable| *is_usable).count() == 0 {
                    problems.push(
                        Problem::at(roots.span, "the system's store holds no usable root certificate")
                            .help("install ca-certificates, or write \"mozilla\" for the roots compiled in"),
                    );
                }
            }
            Roots::File(path, certificates) => {
                if certificates.is_empty() {
                    problems.push(
                        Problem::at(roots.span, format!("{} holds no certificate", path.display()))
                            .help("write the path of a PEM file with one or more CERTIFICATE blocks"),
                    );
                }
                for (index, der) in certificates.iter().enumerate() {
                    let label = format!("certificate {} of {}", index + 1, path.display());
                    anchors.add_at(der, Purpose::Servers, &mut store, (&label, roots.span), problems);
                }
            }
        }
    }
    if trust.roots.is_empty() && *trust.verify == VerifyMode::Full {
        problems.push(
            Problem::at(trust.span, format!("trust {name} has no roots: outgate could verify no target"))
                .help("write roots = [\"mozilla\"]"),
        );
    }
    (store, anchors)
}

/// Compiles the configured intermediates. A leaf among them is a problem, since no path can lead through it.
fn compile_intermediates(
    written: &Located<config::Trust>,
    problems: &mut Vec<Problem>,
) -> Vec<CertificateDer<'static>> {
    let mut found = Vec::new();
    for file in &written.intermediates {
        for (index, der) in file.parts.iter().enumerate() {
            let label = format!("certificate {} of {}", index + 1, file.path.display());
            let message = match signed_der::parse_certificate(der) {
                Some(parsed) if parsed.is_ca() => {
                    found.push(CertificateDer::from(der.clone()));
                    continue;
                }
                Some(_) => format!("{label} is not an authority, so no certificate path can contain it"),
                None => format!("{label} is not an X.509 certificate"),
            };
            let help = "write the certificates of intermediate authorities that targets do not send";
            problems.push(Problem::at(file.span, message).help(help));
        }
    }
    found
}

/// Compiles the pins. A single pin is a problem (RFC 7469 §2.5, §4.3): if its key is lost, no webhook arrives until an
/// operator changes the configuration.
fn compile_pins(written: &Located<config::Trust>, problems: &mut Vec<Problem>) -> BTreeSet<[u8; 32]> {
    let pins: BTreeSet<_> = written.pins.iter().map(|pin| pin.value).collect();
    if let (Some(pin), 1) = (written.pins.first(), pins.len()) {
        let message =
            "this pin has no backup: if its key is lost, outgate reaches no target until the configuration is changed";
        let help = "add the pin of a key that is kept elsewhere, or of the authority that issues the next certificate";
        problems.push(Problem::at(pin.span, message).help(help));
    }
    pins
}

pub(super) fn warn_unverified(name: &TrustName, written: &Located<config::Trust>, problems: &mut Vec<Problem>) {
    let place = written.verify.span;
    problems.push(
        Problem::warning(
            WarningCode::Unverified,
            Some(place),
            format!(
                "trust {name} verifies no certificate: outgate sends webhooks on its routes to any server that \
                 responds, and anyone on the path can read and change them"
            ),
        )
        .help("write verify = \"full\", and the target's own authority as a PEM file in roots"),
    );
    let without_effect = [
        ("pins", written.pins.first().map(|pin| pin.span)),
        ("crls", written.crls.first().map(|list| list.span)),
        ("intermediates", written.intermediates.first().map(|file| file.span)),
        ("strict", written.strict.as_ref().filter(|strict| strict.value).map(|strict| strict.span)),
    ];
    for (key, at) in without_effect.into_iter().filter_map(|(key, at)| at.map(|at| (key, at))) {
        let problem = Problem::at(at, format!("trust {name} verifies no certificate, so {key} has no effect"));
        problems.push(
            problem
                .related(place, "this setting is the reason")
                .help(format!("write verify = \"full\", or remove {key}")),
        );
    }
}

/// Reports settings that have no effect or weaken public roots.
fn warn_ineffective_settings(roots: &RootCertStore, written: &Located<config::Trust>, problems: &mut Vec<Problem>) {
    if let (Some(policy), true) = (&written.crl_policy, written.crls.is_empty()) {
        let problem = Problem::at(policy.span, "crl_policy has no effect without crls");
        let problem = problem.related(written.span, "this trust has no crls");
        problems.push(problem.help("add crls = [\"FILE\"], or remove crl_policy"));
    }
    let not_strict = written.strict.as_ref().filter(|strict| !strict.value);
    if let (Some(strict), false) = (not_strict, roots.is_empty())
        && written.roots.iter().any(|roots| matches!(roots.value, Roots::Mozilla))
    {
        let message = "outgate accepts certificates that violate the rules of public authorities";
        problems.push(Problem::warning(WarningCode::NotStrict, Some(strict.span), message).help("remove strict"));
    }
}

/// Warns about roots without a revocation list. Lists of intermediates cannot be checked here, since targets send these
/// certificates.
fn warn_missing_crls(
    roots: &RootCertStore,
    written: &Located<config::Trust>,
    has_list: &dyn Fn(&[u8]) -> bool,
    problems: &mut Vec<Problem>,
) {
    let Some(first) = written.crls.first() else { return };
    let (all, unlisted) = (roots.len(), roots.roots.iter().filter(|root| !has_list(&root.subject)).count());
    let are_files = written.roots.iter().all(|roots| matches!(roots.value, Roots::File(..)));
    let problem = match written.crl_policy() {
        CrlPolicy::Require if unlisted > 0 => Problem::warning(
            WarningCode::CrlMissing,
            Some(first.span),
            format!(
                "{unlisted} of {all} roots have no revocation list: outgate refuses the certificates that they issued"
            ),
        )
        .help("add the lists of these roots, remove the roots, or write crl_policy = \"lenient\""),
        CrlPolicy::Lenient if unlisted == all && are_files => Problem::warning(
            WarningCode::CrlMissing,
            Some(first.span),
            "no revocation list is issued by one of the roots: the lists apply only to intermediate authorities that \
             targets send",
        )
        .help("add the lists of the roots, or check that these are the lists of their authorities"),
        _ => return,
    };
    problems.push(problem);
}

/// Warns about an identity whose extended key usage excludes clients (RFC 5280 §4.2.1.12): targets may refuse it.
fn warn_identity_usage(identity: &config::ClientIdentity, problems: &mut Vec<Problem>) {
    let leaf = identity.certificate.parts.first().and_then(|der| X509Certificate::from_der(der).ok());
    let purposes = leaf.as_ref().and_then(|(_, leaf)| leaf.extended_key_usage().ok().flatten());
    if purposes.is_some_and(|purposes| !purposes.value.client_auth && !purposes.value.any) {
        let message = "the certificate is not for clients: targets may refuse it";
        let help = "use a certificate whose extended key usage is clientAuth";
        problems
            .push(Problem::warning(WarningCode::IdentityUsage, Some(identity.certificate.span), message).help(help));
    }
}

#[cfg(test)]
mod tests;
