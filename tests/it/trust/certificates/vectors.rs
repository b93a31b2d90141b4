//! Stored certificates that the libraries cannot generate: weak keys, weak signatures, X.509 version 1.
//! Is each obsolete algorithm refused with its own verdict?

use super::generator::{Authority, Case, Der, case, pin, vector};

pub fn cases() -> Vec<Case> {
    // `case` needs an authority. The root of these chains is a vector, too.
    let unrelated_root = Authority::root("nobody");
    let vector_case = |description, rule, presented: &[&str]| {
        let presented: Vec<Der> = presented.iter().map(|name| vector(name)).collect();
        case(description, rule, &[&unrelated_root], presented).root(vector("root"))
    };
    vec![
        vector_case("an RSA key of 2048 bits", "BR §6.1.5", &["rsa2048"]),
        vector_case("an RSA root's key pinned", "RFC 7469 §2.6", &["rsa2048"]).more(format!(
            "pins = [{:?}, {:?}]",
            pin(&vector("root")),
            pin(&unrelated_root.der)
        )),
        vector_case("an RSA-PSS signature", "RFC 4055, BR §7.1.3.2.1", &["rsa-pss"]),
        vector_case("an RSA key of 1024 bits", "BR §6.1.5", &["rsa1024"]).refused("weak_key"),
        vector_case("an issuer with an RSA key of 1024 bits", "BR §6.1.5", &["below-rsa1024", "rsa1024-authority"])
            .refused("weak_key"),
        vector_case("a leaf on the curve secp256k1", "BR §6.1.5; RFC 8446 §4.2.3", &["secp256k1"])
            .refused("unsupported_algorithm"),
        vector_case("an issuer on the curve P-224", "BR §6.1.5", &["below-p224", "p224-authority"])
            .refused("unsupported_algorithm"),
        vector_case("an issuer with an Ed448 key", "BR §6.1.5", &["below-ed448", "ed448-authority"])
            .refused("unsupported_algorithm"),
        vector_case("a root with an RSA key of 1024 bits", "BR §6.1.5", &["below-weak-root"])
            .root(vector("weak-root"))
            .refused("weak_key"),
        vector_case("signed with SHA-1", "BR §7.1.3.2", &["sha1"]).refused("weak_signature"),
        vector_case("an issuer that is signed with SHA-1", "BR §7.1.3.2", &["below-sha1", "sha1-authority"])
            .refused("weak_signature"),
        vector_case("signed with MD5", "RFC 6151 §2", &["md5"]).refused("weak_signature"),
        vector_case("of version 1", "RFC 5280 §4.1.2.1; BR §7.1.1", &["version1"]).refused("malformed"),
        vector_case("an issuer of version 1", "RFC 5280 §6.1.4 (k)", &["below-version1", "version1-authority"])
            .refused("malformed"),
    ]
}
