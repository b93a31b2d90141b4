//! The errors of a TLS handshake with a target, distinguished by type.
//! What does the target's operator need to fix?

use std::error::Error as StdError;
use std::{fmt, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

use super::CertificateSummary;
use crate::policy::trust::error::{CertificateRejection, VerifyError};

/// The reason that a handshake failed.
#[derive(Debug)]
pub enum TlsError {
    Certificate {
        error: VerifyError,
        /// An explanation of `unknown_issuer`, in sentences.
        issuer: Option<String>,
    },
    /// The target rejected the handshake with an alert; `name` is its name in the IANA registry of TLS alerts.
    Alert {
        id: u8,
        name: &'static str,
    },
    /// The target selected a version, suite or key exchange that outgate does not support.
    Incompatible(PeerIncompatible),
    /// The target does not speak TLS on this port.
    Plaintext,
    Protocol(Error),
    Timeout,
    /// The connection ended during the handshake.
    Lost(io::Error),
}

/// A failed handshake, with the certificate that the target presented in it.
#[derive(Debug)]
pub struct HandshakeError {
    pub error: TlsError,
    pub certificate: Option<Box<CertificateSummary>>,
}

impl HandshakeError {
    /// Adds the target's certificate; `leaf` is its DER.
    pub(super) fn with_certificate(error: TlsError, leaf: Option<&[u8]>) -> Self {
        Self { error, certificate: leaf.map(|der| Box::new(CertificateSummary::read(der))) }
    }
}

impl From<VerifyError> for HandshakeError {
    fn from(error: VerifyError) -> Self {
        Self { error: error.into(), certificate: None }
    }
}

/// Converts the error of [`super::verify`], or of rustls itself: the peer does not hold the certificate's key.
fn verify_error(error: &CertificateError) -> VerifyError {
    use CertificateError as E;
    match error {
        E::UnknownIssuer => VerifyError::UnknownIssuer,
        E::Expired => VerifyError::Expired,
        E::NotValidYet => VerifyError::NotYetValid,
        E::NotValidForName => VerifyError::NameMismatch,
        E::Revoked => VerifyError::Revoked,
        E::BadSignature => VerifyError::BadSignature,
        E::UnsupportedSignatureAlgorithmContext { .. } | E::UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => {
            VerifyError::UnsupportedAlgorithm
        }
        E::Other(other) => other.0.downcast_ref().copied().unwrap_or(VerifyError::Malformed),
        _ => VerifyError::Malformed,
    }
}

impl From<VerifyError> for TlsError {
    fn from(error: VerifyError) -> Self {
        CertificateRejection::from(error).into()
    }
}

impl From<CertificateRejection> for TlsError {
    fn from(CertificateRejection { error, issuer }: CertificateRejection) -> Self {
        Self::Certificate { error, issuer }
    }
}

impl From<io::Error> for TlsError {
    /// Converts an I/O error of tokio-rustls, which wraps an error of rustls or comes from the network.
    fn from(error: io::Error) -> Self {
        match error.downcast::<Error>() {
            Ok(error) => error.into(),
            Err(error) => Self::Lost(error),
        }
    }
}

impl From<Error> for TlsError {
    fn from(error: Error) -> Self {
        match error {
            Error::InvalidCertificate(error) => verify_error(&error).into(),
            Error::AlertReceived(alert) => Self::Alert { id: alert.into(), name: alert_name(alert) },
            Error::PeerIncompatible(incompatibility) => Self::Incompatible(incompatibility),
            // The first byte of every record is its type, and no text protocol begins with one of the five types.
            Error::InvalidMessage(InvalidMessage::InvalidContentType) => Self::Plaintext,
            error => Self::Protocol(error),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Certificate { .. } => f.write_str("the target's certificate is not trusted"),
            Self::Alert { id, name } => write!(f, "the target refused the handshake with alert {id} ({name})"),
            Self::Incompatible(_) => f.write_str("no TLS version or cipher suite in common"),
            Self::Plaintext => f.write_str("the target does not speak TLS on this port"),
            Self::Protocol(_) => f.write_str("the target broke the TLS protocol"),
            Self::Timeout => f.write_str("the TLS handshake did not end in time"),
            Self::Lost(_) => f.write_str("the connection ended during the TLS handshake"),
        }
    }
}

impl StdError for TlsError {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        match self {
            Self::Certificate { error, .. } => Some(error),
            Self::Protocol(error) => Some(error),
            Self::Lost(error) => Some(error),
            Self::Alert { .. } | Self::Incompatible(_) | Self::Plaintext | Self::Timeout => None,
        }
    }
}

/// The registry's spelling, which `Proxy-Status` wants (RFC 9209 §2.3.15, `alert-message`).
fn alert_name(alert: AlertDescription) -> &'static str {
    use AlertDescription as A;
    match alert {
        A::CloseNotify => "close_notify",
        A::UnexpectedMessage => "unexpected_message",
        A::BadRecordMac => "bad_record_mac",
        A::DecryptionFailed => "decryption_failed",
        A::RecordOverflow => "record_overflow",
        A::DecompressionFailure => "decompression_failure",
        A::HandshakeFailure => "handshake_failure",
        A::NoCertificate => "no_certificate",
        A::BadCertificate => "bad_certificate",
        A::UnsupportedCertificate => "unsupported_certificate",
        A::CertificateRevoked => "certificate_revoked",
        A::CertificateExpired => "certificate_expired",
        A::CertificateUnknown => "certificate_unknown",
        A::IllegalParameter => "illegal_parameter",
        A::UnknownCA => "unknown_ca",
        A::AccessDenied => "access_denied",
        A::DecodeError => "decode_error",
        A::DecryptError => "decrypt_error",
        A::ExportRestriction => "export_restriction",
        A::ProtocolVersion => "protocol_version",
        A::InsufficientSecurity => "insufficient_security",
        A::InternalError => "internal_error",
        A::InappropriateFallback => "inappropriate_fallback",
        A::UserCanceled => "user_canceled",
        A::NoRenegotiation => "no_renegotiation",
        A::MissingExtension => "missing_extension",
        A::UnsupportedExtension => "unsupported_extension",
        A::CertificateUnobtainable => "certificate_unobtainable",
        A::UnrecognisedName => "unrecognized_name",
        A::BadCertificateStatusResponse => "bad_certificate_status_response",
        A::BadCertificateHashValue => "bad_certificate_hash_value",
        A::UnknownPSKIdentity => "unknown_psk_identity",
        A::CertificateRequired => "certificate_required",
        A::NoApplicationProtocol => "no_application_protocol",
        A::EncryptedClientHelloRequired => "ech_required",
        _ => "unknown",
    }
}
