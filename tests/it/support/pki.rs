//! A certificate authority for one test.
//! Which certificates do the receivers present?

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

pub struct Pki {
    issuer: Issuer<'static, KeyPair>,
    pub pem: String,
}

/// A chain and its key, as a server needs them.
pub struct Identity {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKeyDer<'static>,
}

impl Pki {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        // With equal names, a certificate of the other authority would have a bad signature instead of an unknown issuer.
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let name = format!("outgate test CA {}", COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).unwrap().pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    pub fn leaf(&self, names: &[&str]) -> Identity {
        self.leaf_with(names, |_| {})
    }

    pub fn leaf_with(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = params(names);
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        identity(certificate.der().clone(), &key)
    }
}

impl Pki {
    /// Issues an intermediate authority, whose certificate is its `pem`.
    pub fn intermediate(&self, name: &str) -> Pki {
        self.intermediate_with(name, |_| {})
    }

    pub fn intermediate_with(&self, name: &str, change: impl FnOnce(&mut CertificateParams)) -> Pki {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        change(&mut params);
        let pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Pki { issuer: Issuer::new(params, key), pem }
    }

    /// Returns the revocation list of this authority, with these serial numbers, in PEM.
    pub fn revoked(&self, serials: &[u64]) -> String {
        self.revoked_until(serials, (4000, 1, 1))
    }

    pub fn revoked_until(&self, serials: &[u64], until: (i32, u8, u8)) -> String {
        self.revoked_within(serials, (2026, 1, 1), until)
    }

    pub fn revoked_from(&self, serials: &[u64], from: (i32, u8, u8)) -> String {
        self.revoked_within(serials, from, (4000, 1, 1))
    }

    fn revoked_within(&self, serials: &[u64], from: (i32, u8, u8), until: (i32, u8, u8)) -> String {
        let day = |(year, month, day): (i32, u8, u8)| rcgen::date_time_ymd(year, month, day);
        let date = rcgen::date_time_ymd;
        let revoked = serials.iter().map(|serial| rcgen::RevokedCertParams {
            serial_number: (*serial).into(),
            revocation_time: date(2026, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let list = rcgen::CertificateRevocationListParams {
            this_update: day(from),
            next_update: day(until),
            crl_number: 1_u64.into(),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: rcgen::KeyIdMethod::Sha256,
        };
        list.signed_by(&self.issuer).unwrap().pem().unwrap()
    }
}

impl Identity {
    pub fn chain_pem(&self) -> String {
        self.chain.iter().map(|certificate| pem("CERTIFICATE", certificate)).collect()
    }
    pub fn key_pem(&self) -> String {
        pem("PRIVATE KEY", self.key.secret_der())
    }
}

pub fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

pub fn self_signed(names: &[&str]) -> Identity {
    let key = KeyPair::generate().unwrap();
    let mut params = params(names);
    params.distinguished_name.push(rcgen::DnType::CommonName, "self");
    let certificate = params.self_signed(&key).unwrap();
    identity(certificate.der().clone(), &key)
}

fn params(names: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::new(names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>()).unwrap();
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params
}

fn identity(certificate: CertificateDer<'static>, key: &KeyPair) -> Identity {
    Identity { chain: vec![certificate], key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())) }
}
