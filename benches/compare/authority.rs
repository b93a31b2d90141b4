//! The certificate authority of the benchmark, which each contender trusts alone.
//! Which certificates does the receiver present?

use std::fs;
use std::path::Path;

use rcgen::KeyUsagePurpose;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::Error;

/// The name of the target.
pub(crate) const TARGET: &str = "hook.bench.test";

/// The name in a valid certificate that is not the target's.
const OTHER: &str = "other.bench.test";

/// Writes the root `ca.pem`, a chain that it issued to the target, one that it issued to another name, and one that an
/// unknown root issued to the target. As with most public certificates, the keys are P-256 and an intermediate authority
/// is in between.
pub(crate) fn write(folder: &Path) -> Result<(), Error> {
    fs::create_dir_all(folder)?;
    let root = CertifiedIssuer::self_signed(issuer("Bench Root")?, KeyPair::generate()?)?;
    let intermediate = CertifiedIssuer::signed_by(issuer("Bench Intermediate")?, KeyPair::generate()?, &root)?;
    let unknown = CertifiedIssuer::self_signed(issuer("Unknown Root")?, KeyPair::generate()?)?;
    fs::write(folder.join("ca.pem"), root.pem())?;
    for (name, issuer, host) in
        [("known", &intermediate, TARGET), ("other", &intermediate, OTHER), ("unknown", &unknown, TARGET)]
    {
        let mut leaf = CertificateParams::new(vec![host.to_owned()])?;
        leaf.distinguished_name.push(DnType::CommonName, host);
        leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        leaf.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = leaf.signed_by(&key, issuer)?;
        fs::write(folder.join(format!("{name}.pem")), certificate.pem() + &issuer.pem())?;
        fs::write(folder.join(format!("{name}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn issuer(name: &str) -> Result<CertificateParams, Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

pub(crate) type Identity = (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>);

/// Reads a chain and its key.
pub(crate) fn read(folder: &Path, name: &str) -> Result<Identity, Error> {
    let chain = CertificateDer::pem_file_iter(folder.join(format!("{name}.pem")))?.collect::<Result<_, _>>()?;
    Ok((chain, PrivateKeyDer::from_pem_file(folder.join(format!("{name}.key")))?))
}
