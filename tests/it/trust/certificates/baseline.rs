//! The rules of `strict` for public authorities beyond RFC 5280, as far as a client can check them.
//! Does only `strict` refuse a certificate that no public authority may issue?

use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose as Purpose, IsCa, KeyUsagePurpose as Usage,
    PublicKeyData, SanType,
};

use super::generator::{Authority, Case, NAME, case, common_name, extension, leaf_params, policies};

/// An RSAPublicKey (RFC 8017 A.1.1) with a modulus that is not a product of known primes.
struct RsaKey(Vec<u8>);

impl RsaKey {
    /// The modulus has these first octets, and then octets of 0xFF.
    fn new(first: &[u8], rest: usize, exponent: &[u8]) -> Self {
        let modulus = [first, &vec![0xFF; rest]].concat();
        let [high, low] = u16::try_from(modulus.len()).unwrap().to_be_bytes();
        let exponent = [&[2, u8::try_from(exponent.len()).unwrap()], exponent].concat();
        let numbers = [&[2, 0x82, high, low], modulus.as_slice(), &exponent].concat();
        let [high, low] = u16::try_from(numbers.len()).unwrap().to_be_bytes();
        Self([&[0x30, 0x82, high, low], numbers.as_slice()].concat())
    }
}

impl PublicKeyData for RsaKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

pub fn cases() -> Vec<Case> {
    let root = Authority::root("root");
    let r = &[&root];
    let leaf = |change: &dyn Fn(&mut CertificateParams)| vec![root.leaf_with(|params| change(params))];
    let below = |change: &dyn Fn(&mut CertificateParams)| {
        let issuer = root.issue_ca_with("issuer", |params| change(params));
        vec![issuer.leaf(), issuer.der]
    };
    let purposes = |purposes: &'static [Purpose]| {
        move |params: &mut CertificateParams| params.extended_key_usages = purposes.to_vec()
    };
    let usages = |usages: &'static [Usage]| move |params: &mut CertificateParams| params.key_usages = usages.to_vec();
    let (eku, baseline) = ("BR §7.1.2.7.10", "not_baseline");
    let also = |name: SanType| move |params: &mut CertificateParams| params.subject_alt_names.push(name.clone());
    let ip = |ip: &str| SanType::IpAddress(ip.parse().unwrap());
    let serial = |octets: &'static [u8]| {
        move |params: &mut CertificateParams| params.serial_number = Some(octets.to_vec().into())
    };
    let rsa = |first: &[u8], rest: usize, exponent: &[u8]| {
        vec![root.sign_key(&leaf_params(&[NAME]), &RsaKey::new(first, rest, exponent))]
    };
    let dns = |name: &str| SanType::DnsName(name.try_into().unwrap());
    let uncritical = |params: &mut CertificateParams| {
        params.is_ca = IsCa::NoCa;
        params.custom_extensions.push(extension(19, false, &[0x30, 3, 1, 1, 0xFF]));
    };
    vec![
        case("for servers and for any purpose", eku, r, leaf(&purposes(&[Purpose::ServerAuth, Purpose::Any])))
            .refused_if_strict("wrong_usage"),
        case("for servers and for signing code", eku, r, leaf(&purposes(&[Purpose::ServerAuth, Purpose::CodeSigning])))
            .refused_if_strict("wrong_usage"),
        case("for servers and e-mail", eku, r, leaf(&purposes(&[Purpose::ServerAuth, Purpose::EmailProtection])))
            .refused_if_strict("wrong_usage"),
        case(
            "an issuer for servers and for any purpose",
            "BR §7.1.2.10.6",
            r,
            below(&purposes(&[Purpose::ServerAuth, Purpose::Any])),
        )
        .refused_if_strict("wrong_usage"),
        case(
            "a leaf whose key may sign certificates",
            "BR §7.1.2.7.11",
            r,
            leaf(&usages(&[Usage::DigitalSignature, Usage::KeyCertSign])),
        )
        .refused_if_strict("wrong_usage"),
        case(
            "a leaf whose key may sign lists",
            "BR §7.1.2.7.11",
            r,
            leaf(&usages(&[Usage::DigitalSignature, Usage::CrlSign])),
        )
        .refused_if_strict("wrong_usage"),
        case("no policies", "BR §7.1.2.7.9", r, leaf(&|params| params.custom_extensions.clear()))
            .refused_if_strict(baseline),
        case(
            "a policy that is no reserved one",
            "BR §7.1.6.1",
            r,
            leaf(&|params| params.custom_extensions = vec![policies(9)]),
        )
        .refused_if_strict(baseline),
        case(
            "validated by organisation",
            "BR §7.1.6.1",
            r,
            leaf(&|params| params.custom_extensions = vec![policies(2)]),
        ),
        case("an RSA key of 2052 bits", "BR §6.1.5: bits divisible by 8", r, rsa(&[0x0F], 256, &[1, 0, 1]))
            .refused_if_strict(baseline),
        case("an RSA key of 2056 bits", "BR §6.1.5", r, rsa(&[0, 0xFF], 256, &[1, 0, 1])),
        case("an RSA key with an even exponent", "BR §6.1.6", r, rsa(&[0, 0xFF], 255, &[1, 0, 0]))
            .refused_if_strict(baseline),
        case("an address that is for documents beside the name", "BR §4.2.2", r, leaf(&also(ip("192.0.2.7"))))
            .refused_if_strict(baseline),
        case("a private address beside the name", "BR §4.2.2", r, leaf(&also(ip("10.0.0.7"))))
            .refused_if_strict(baseline),
        case("a unique local address beside the name", "BR §4.2.2", r, leaf(&also(ip("fd00::7"))))
            .refused_if_strict(baseline),
        case("a public address beside the name", "BR §7.1.2.7.12", r, leaf(&also(ip("9.9.9.9")))),
        case("a serial number of 20 octets", "RFC 5280 §4.1.2.2", r, leaf(&serial(&[0x7F; 20]))),
        case("a serial number of 20 octets and its sign", "RFC 5280 §4.1.2.2", r, leaf(&serial(&[0xFF; 20]))),
        case("a serial number of 21 octets", "RFC 5280 §4.1.2.2", r, leaf(&serial(&[0x7F; 21])))
            .refused_if_strict(baseline),
        case("a serial number of zero", "BR §7.1", r, leaf(&|params| params.serial_number = Some(0_u64.into())))
            .refused_if_strict(baseline),
        case("a common name that is one of its names", "BR §7.1.4.3", r, leaf(&|params| common_name(params, NAME))),
        case(
            "a common name that is none of its names",
            "BR §7.1.4.3",
            r,
            leaf(&|params| common_name(params, "a server")),
        )
        .refused_if_strict(baseline),
        case("an underscore in another name", "BR §7.1.2.7.12", r, leaf(&also(dns("a_b.acme.example"))))
            .refused_if_strict(baseline),
        case("an internal name beside the name", "BR §4.2.2", r, leaf(&also(dns("localhost"))))
            .refused_if_strict(baseline),
        case("a wildcard within a label beside the name", "BR §3.2.2.6", r, leaf(&also(dns("a*.acme.example"))))
            .refused_if_strict(baseline),
        case(
            "an e-mail address beside the name",
            "BR §7.1.2.7.12: DNS names and addresses only",
            r,
            leaf(&also(SanType::Rfc822Name("ops@acme.example".try_into().unwrap()))),
        )
        .refused_if_strict(baseline),
        case(
            "an issuer whose basicConstraints are not critical",
            "BR §7.1.2.10.3; RFC 5280 §4.2.1.9",
            r,
            below(&uncritical),
        )
        .refused_if_strict(baseline),
        case(
            "an issuer with a limit of authorities below",
            "BR §7.1.2.10.3",
            r,
            below(&|params| params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0))),
        ),
    ]
}
