//! The verification errors of a target's certificate chain.
//! What must the target's operator fix?

use std::{error, fmt};

/// Defines the verification errors, each with its code for the `details` of a refusal. [`super::verify`] documents the order of
/// precedence.
macro_rules! verify_errors {
    ($($error:ident $word:literal $meaning:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum VerifyError { $($error,)* }

        impl VerifyError {
            pub const ALL: &[Self] = &[$(Self::$error,)*];

            /// Returns the code for the `details` of a refusal.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$error => $word,)* }
            }

            pub fn meaning(self) -> &'static str {
                match self { $(Self::$error => $meaning,)* }
            }
        }
    };
}

verify_errors! {
    SelfSigned "self_signed" "the certificate is self-signed";
    UnknownIssuer "unknown_issuer" "the certificate's issuer is not trusted";
    Expired "expired" "a certificate of the chain has expired";
    NotYetValid "not_yet_valid" "a certificate of the chain is not valid yet";
    NameMismatch "name_mismatch" "the certificate is for another name";
    NoSubjectAltName "no_subject_alt_name" "the certificate has no name in subjectAltName";
    Revoked "revoked" "a certificate of the chain is revoked";
    RevocationUnknown "revocation_unknown" "no usable revocation list covers a certificate of the chain";
    RevocationStale "revocation_stale" "the revocation list for a certificate of the chain is out of date";
    PinMismatch "pin_mismatch" "no key of the chain is pinned";
    WrongUsage "wrong_usage" "a certificate of the chain may not be used for this purpose";
    CaAsLeaf "ca_as_leaf" "the certificate is an authority's, not a server's";
    ValidityTooLong "validity_too_long" "the certificate is valid for longer than public authorities may allow";
    NotBaseline "not_baseline" "the certificate violates the rules of public authorities";
    WeakKey "weak_key" "a certificate of the chain has an RSA key of less than 2048 bits";
    WeakSignature "weak_signature" "a certificate of the chain is signed with SHA-1 or older";
    UnsupportedAlgorithm "unsupported_algorithm" "a certificate of the chain has a key or signature of an algorithm that is not supported";
    BadSignature "bad_signature" "a signature does not verify with its issuer's key";
    Malformed "malformed" "a certificate of the chain cannot be read";
}

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.meaning())
    }
}

impl error::Error for VerifyError {}

/// The error of a rejected chain, with the information that the target's operator needs beyond its code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateRejection {
    pub error: VerifyError,
    /// The missing issuer of `unknown_issuer`, in one or two sentences. It contains names that the target wrote.
    pub issuer: Option<String>,
}

impl From<VerifyError> for CertificateRejection {
    fn from(error: VerifyError) -> Self {
        Self { error, issuer: None }
    }
}

impl fmt::Display for CertificateRejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.issuer {
            Some(issuer) => write!(f, "{}: {issuer}", self.error),
            None => self.error.fmt(f),
        }
    }
}

impl error::Error for CertificateRejection {}
