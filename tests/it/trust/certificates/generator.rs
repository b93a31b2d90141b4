//! Generation of certificate chains, and their verification by a compiled trust.
//! How does a case generate its chain and get its verdict?

use std::net::IpAddr;

use jiff::Timestamp;
use outgate::names::TrustName;
use outgate::policy::trust::error::CertificateRejection;
use outgate::{config, policy};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CustomExtension, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData, RevokedCertParams,
    SigningKey,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use super::support::Folder;

pub type Der = Vec<u8>;

pub const NAME: &str = "hooks.acme.example";
/// The default time of verification.
pub const NOW: &str = "2026-12-01T12:00:00Z";
pub const GOOD: &str = "good";

pub fn date(text: &str) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(text.parse::<Timestamp>().unwrap().as_second()).unwrap()
}

/// A certificate that may issue others, and its key.
pub struct Authority {
    params: CertificateParams,
    key: String,
    pub der: Der,
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new([]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    (params.not_before, params.not_after) = (date("2020-01-01T00:00:00Z"), date("2040-01-01T00:00:00Z"));
    params
}

pub fn leaf_params(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "a server");
    params.use_authority_key_identifier_extension = true;
    params.custom_extensions = vec![policies(1)];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.serial_number = Some(7_u64.into());
    (params.not_before, params.not_after) = (date("2026-11-01T00:00:00Z"), date("2027-04-01T00:00:00Z"));
    params
}

impl Authority {
    pub fn root(name: &str) -> Self {
        Self::root_with(name, |_| {})
    }

    pub fn root_with(name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let (mut params, key) = (authority_params(name), KeyPair::generate().unwrap());
        change(&mut params);
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key: key.serialize_pem(), der }
    }

    pub fn issue_ca(&self, name: &str) -> Self {
        self.issue_ca_with(name, |_| {})
    }

    pub fn issue_ca_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        self.certify(name, &KeyPair::generate().unwrap().serialize_pem(), change)
    }

    /// Issues a certificate for the subject and key of `other`.
    pub fn cross_sign(&self, other: &Self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = other.params.clone();
        change(&mut params);
        let key = KeyPair::from_pem(&other.key).unwrap();
        let der = params.signed_by(&key, &self.issuer()).unwrap().der().to_vec();
        Self { params, key: other.key.clone(), der }
    }

    fn certify(&self, name: &str, key: &str, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = authority_params(name);
        params.serial_number = Some(9_u64.into());
        change(&mut params);
        let pair = KeyPair::from_pem(key).unwrap();
        let der = params.signed_by(&pair, &self.issuer()).unwrap().der().to_vec();
        Self { params, key: key.to_owned(), der }
    }

    /// Signs bytes that rcgen does not write.
    pub fn sign_bytes(&self, text: &[u8]) -> Vec<u8> {
        KeyPair::from_pem(&self.key).unwrap().sign(text).unwrap()
    }

    /// Returns another authority with the same name and another key.
    pub fn same_name_other_key(&self) -> Self {
        let (params, key) = (self.params.clone(), KeyPair::generate().unwrap());
        let der = params.self_signed(&key).unwrap().der().to_vec();
        Self { params, key: key.serialize_pem(), der }
    }

    fn issuer(&self) -> Issuer<'static, KeyPair> {
        Issuer::new(self.params.clone(), KeyPair::from_pem(&self.key).unwrap())
    }

    /// Issues a server certificate for [`NAME`].
    pub fn leaf(&self) -> Der {
        self.leaf_with(|_| {})
    }

    pub fn leaf_for(&self, names: &[&str]) -> Der {
        self.sign(&leaf_params(names))
    }

    pub fn leaf_with(&self, change: impl FnOnce(&mut CertificateParams)) -> Der {
        let mut params = leaf_params(&[NAME]);
        change(&mut params);
        self.sign(&params)
    }

    pub fn sign(&self, params: &CertificateParams) -> Der {
        self.sign_key(params, &KeyPair::generate().unwrap())
    }

    /// Issues a certificate for a public key without a private key.
    pub fn sign_key(&self, params: &CertificateParams, key: &impl PublicKeyData) -> Der {
        params.signed_by(key, &self.issuer()).unwrap().der().to_vec()
    }

    /// Issues the revocation list of this authority, which is valid at [`NOW`].
    pub fn list(&self, revoked: &[u64]) -> Der {
        self.list_of(revoked, "2026-11-28T00:00:00Z", "2026-12-05T00:00:00Z")
    }

    pub fn list_of(&self, revoked: &[u64], from: &str, next: &str) -> Der {
        let revoked = revoked.iter().map(|serial| RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date("2026-11-20T00:00:00Z"),
            reason_code: None,
            invalidity_date: None,
        });
        let list = CertificateRevocationListParams {
            this_update: date(from),
            next_update: date(next),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // rcgen signs no list for an authority without the key usage, so the usages are cleared.
        let mut params = self.params.clone();
        params.key_usages.clear();
        let issuer = Issuer::new(params, KeyPair::from_pem(&self.key).unwrap());
        list.signed_by(&issuer).unwrap().der().to_vec()
    }
}

pub fn self_signed(change: impl FnOnce(&mut CertificateParams)) -> Der {
    let mut params = leaf_params(&[NAME]);
    change(&mut params);
    params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

pub fn common_name(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, DnValue::Utf8String(name.to_owned()));
}

/// Returns an extension by its number below id-ce (2.5.29).
pub fn extension(number: u64, critical: bool, content: &[u8]) -> CustomExtension {
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, number], content.to_vec());
    extension.set_criticality(critical);
    extension
}

/// certificatePolicies with one reserved policy of the Baseline Requirements: domain (1), organisation or individual.
pub fn policies(validation: u8) -> CustomExtension {
    extension(32, false, &[0x30, 10, 0x30, 8, 6, 6, 0x67, 0x81, 0x0c, 1, 2, validation])
}

/// A subjectAltName of raw GeneralNames: the tag and the bytes of each.
pub fn names(names: &[(u8, &[u8])]) -> CustomExtension {
    let each = names.iter().flat_map(|(tag, bytes)| [&[*tag, u8::try_from(bytes.len()).unwrap()], *bytes].concat());
    let each: Vec<u8> = each.collect();
    extension(17, false, &[&[0x30, u8::try_from(each.len()).unwrap()], each.as_slice()].concat())
}

/// `sha256/…` of the key of a certificate.
pub fn pin(der: &[u8]) -> String {
    use base64::Engine;
    use x509_parser::prelude::FromDer;
    let (_, certificate) = x509_parser::prelude::X509Certificate::from_der(der).unwrap();
    let hash = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.public_key().raw);
    format!("sha256/{}", base64::engine::general_purpose::STANDARD.encode(hash))
}

/// Reads a certificate of `tests/vectors/certificates`, which `make` has generated.
pub fn vector(name: &str) -> Der {
    let path = format!("{}/tests/vectors/certificates/{name}.pem", env!("CARGO_MANIFEST_DIR"));
    CertificateDer::from_pem_file(path).unwrap().to_vec()
}

/// A chain and its expected verdicts.
pub struct Case {
    /// A description of the chain.
    pub description: &'static str,
    /// The source of the expected verdict.
    pub rule: &'static str,
    /// The presented chain, with the leaf first.
    presented: Vec<Der>,
    roots: Vec<Der>,
    lists: Vec<Der>,
    /// The configured intermediates, which the target does not send.
    intermediates: Vec<Der>,
    /// Further lines of `[trust.NAME]`.
    more: String,
    target: String,
    now: &'static str,
    pub strict: &'static str,
    pub loose: &'static str,
}

/// Creates a case with the expected verdict [`GOOD`].
pub fn case(description: &'static str, rule: &'static str, roots: &[&Authority], presented: Vec<Der>) -> Case {
    Case {
        description,
        rule,
        presented,
        roots: roots.iter().map(|root| root.der.clone()).collect(),
        lists: Vec::new(),
        intermediates: Vec::new(),
        more: String::new(),
        target: NAME.to_owned(),
        now: NOW,
        strict: GOOD,
        loose: GOOD,
    }
}

impl Case {
    pub fn refused(self, details: &'static str) -> Self {
        Self { strict: details, loose: details, ..self }
    }
    /// Expects a refusal only with `strict`.
    pub fn refused_if_strict(self, details: &'static str) -> Self {
        Self { strict: details, ..self }
    }
    pub fn target(self, target: &str) -> Self {
        Self { target: target.to_owned(), ..self }
    }
    pub fn at(self, now: &'static str) -> Self {
        Self { now, ..self }
    }
    pub fn lists(self, lists: Vec<Der>) -> Self {
        Self { lists, ..self }
    }
    pub fn intermediates(self, intermediates: Vec<Der>) -> Self {
        Self { intermediates, ..self }
    }
    pub fn more(self, more: impl Into<String>) -> Self {
        Self { more: more.into(), ..self }
    }
    pub fn root(self, der: Der) -> Self {
        Self { roots: vec![der], ..self }
    }
    pub fn also_root(mut self, der: Der) -> Self {
        self.roots.push(der);
        self
    }

    /// Returns one case for each byte of the leaf, with one bit of the byte changed.
    pub fn corrupted(&self) -> impl Iterator<Item = Case> {
        (0..self.presented[0].len()).map(|at| {
            let mut presented = self.presented.clone();
            presented[0][at] ^= 1 << (at % 8);
            let (roots, target) = (self.roots.clone(), self.target.clone());
            let (lists, intermediates, more) = (self.lists.clone(), self.intermediates.clone(), self.more.clone());
            Case { presented, roots, lists, intermediates, more, target, ..*self }
        })
    }

    /// Returns the verdict on the chain.
    pub fn verdict(&self, strict: bool) -> &'static str {
        self.rejection(strict).map_or(GOOD, |refused| refused.error.as_str())
    }

    pub fn rejection(&self, strict: bool) -> Option<CertificateRejection> {
        let plan = self.compile(strict).unwrap_or_else(|problems| panic!("{}: {problems}", self.description));
        let trust = &plan.trusts[&TrustName::new("t")];
        let presented: Vec<CertificateDer<'_>> = self.presented.iter().map(|der| der.as_slice().into()).collect();
        let (leaf, intermediates) = presented.split_first().unwrap();
        trust.verify(leaf, intermediates, &self.name(), self.time()).err()
    }

    /// Compiles a configuration with the roots and lists of the case. The error has the text of `outgate check`.
    pub fn compile(&self, strict: bool) -> Result<policy::Plan, String> {
        let folder = self.folder();
        let key = |key: &str, parts: &[Der]| match parts {
            [] => String::new(),
            _ => format!("{key} = [\"{key}.pem\"]\n"),
        };
        let files = key("crls", &self.lists) + &key("intermediates", &self.intermediates);
        let text = format!(
            "[egress.default]\nranges = [\"127.0.7.0/30\"]\n[trust.t]\nroots = [\"roots.pem\"]\nstrict = {strict}\n{files}{}",
            self.more
        );
        let loaded = config::parse(&text, &folder.path("config.toml"))
            .map_err(|rejected| config::render(&rejected.problems, &rejected.sources, false))?;
        let plan = policy::compile(&loaded.config, self.now.parse().unwrap());
        plan.map(|(plan, _)| plan).map_err(|problems| config::render(&problems, &loaded.config.sources, false))
    }

    /// Writes the certificates and lists to files.
    pub fn folder(&self) -> Folder {
        let folder = Folder::new();
        folder.write("roots.pem", pem("CERTIFICATE", &self.roots));
        folder.write("leaf.pem", pem("CERTIFICATE", &self.presented[..1]));
        folder.write("shown.pem", pem("CERTIFICATE", &[&self.presented[1..], &self.intermediates].concat()));
        folder.write("intermediates.pem", pem("CERTIFICATE", &self.intermediates));
        folder.write("crls.pem", pem("X509 CRL", &self.lists));
        folder
    }

    pub fn name(&self) -> ServerName<'static> {
        match self.target.parse::<IpAddr>() {
            Ok(ip) => ServerName::from(ip),
            Err(_) => ServerName::try_from(self.target.clone()).unwrap(),
        }
    }

    pub fn time(&self) -> UnixTime {
        let now: Timestamp = self.now.parse().unwrap();
        UnixTime::since_unix_epoch(std::time::Duration::from_secs(now.as_second().try_into().unwrap()))
    }

    pub fn parts(&self) -> (&[Der], &[Der], &[Der], &[Der]) {
        (&self.presented, &self.roots, &self.intermediates, &self.lists)
    }
}

fn pem(label: &str, parts: &[Der]) -> String {
    parts.iter().map(|der| super::support::pki::pem(label, der)).collect()
}
