//! The faults of a target's certificate chain.
//! What must the target's operator fix?

use std::{error, fmt};

/// Defines each fault with its code for the `details` of a refusal. [`super::verify`] documents the order of
/// precedence.
macro_rules! faults {
    ($($fault:ident $word:literal $meaning:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum CertificateFault { $($fault,)* }

        impl CertificateFault {
            pub const ALL: &[Self] = &[$(Self::$fault,)*];

            /// Returns the code for the `details` of a refusal.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$fault => $word,)* }
            }

            pub fn meaning(self) -> &'static str {
                match self { $(Self::$fault => $meaning,)* }
            }
        }
    };
}

faults! {
    SelfSigned "self_signed" "the certificate is self-signed";
    UnknownIssuer "unknown_issuer" "the certificate's issuer is not trusted";
    Expired "expired" "a certificate of the chain has expired";
    NotYetValid "not_yet_valid" "a certificate of the chain is not valid yet";
    NameMismatch "name_mismatch" "the certificate is for another name";
    NoSubjectAltName "no_subject_alt_name" "the certificate has no name where names belong, in subjectAltName";
    Revoked "revoked" "a certificate of the chain is revoked";
    RevocationUnknown "revocation_unknown" "no usable revocation list speaks of a certificate of the chain";
    RevocationStale "revocation_stale" "the revocation list for a certificate of the chain is out of date";
    PinMismatch "pin_mismatch" "no key of the chain is a pinned one";
    WrongUsage "wrong_usage" "a certificate of the chain may not be used so";
    CaAsLeaf "ca_as_leaf" "the certificate is an authority's, not a server's";
    ValidityTooLong "validity_too_long" "the certificate is valid for longer than public authorities may let it be";
    NotBaseline "not_baseline" "the certificate is not one that a public authority may issue";
    WeakKey "weak_key" "a certificate of the chain has an RSA key of less than 2048 bits";
    WeakSignature "weak_signature" "a certificate of the chain is signed with SHA-1 or older";
    UnsupportedAlgorithm "unsupported_algorithm" "a certificate of the chain has a key or signature of an algorithm that is not supported";
    BadSignature "bad_signature" "a signature does not verify with its issuer's key";
    Malformed "malformed" "a certificate of the chain cannot be read";
}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.meaning())
    }
}

impl error::Error for CertificateFault {}

/// A fault, with the information that the target's operator needs beyond its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRejection {
    pub fault: CertificateFault,
    /// The missing issuer of `unknown_issuer`, in one or two sentences. It contains names that the target wrote.
    pub issuer: Option<String>,
}

impl From<CertificateFault> for CertificateRejection {
    fn from(fault: CertificateFault) -> Self {
        Self { fault, issuer: None }
    }
}

impl fmt::Display for CertificateRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.issuer {
            Some(issuer) => write!(f, "{}: {issuer}", self.fault),
            None => self.fault.fmt(f),
        }
    }
}

impl error::Error for CertificateRejection {}
