//! Refusals that end a tunnel after the client has its 200: only the record has them.
//! Why was an open tunnel closed?

use std::io;

use crate::delivery::refusal::{Code, Refusal};
use crate::net::client_hello::ClientHelloError;
use crate::net::tls::TlsError;
use crate::net::tls::leaf_issuer::IssueError;
use crate::net::tunnel::CopyError;

/// The error that ends an inspected tunnel before the first request inside it.
#[derive(Debug)]
pub enum InspectError {
    Hello(ClientHelloError),
    /// The client ended the handshake.
    Handshake(io::Error),
    Mint(IssueError),
}

impl From<InspectError> for Refusal {
    fn from(error: InspectError) -> Self {
        match error {
            InspectError::Hello(error) => error.into(),
            InspectError::Handshake(error) => client_handshake_failed(error),
            InspectError::Mint(error) => {
                Refusal::new(Code::Internal, "outgate could not issue a certificate for the tunnel's host")
                    .with_cause(error)
            }
        }
    }
}

/// Distinguishes a client that rejects the certificate from other failures of the handshake.
fn client_handshake_failed(error: io::Error) -> Refusal {
    let cause = error.to_string();
    let detail = match TlsError::from(error) {
        TlsError::Alert { name: "unknown_ca", .. } => "the client ended the TLS handshake: it does not trust server.ca",
        // Some clients send these alerts for an authority that they do not trust.
        TlsError::Alert { name: "bad_certificate" | "certificate_unknown", .. } => {
            "the client ended the TLS handshake: it rejected the certificate, and may not trust server.ca"
        }
        _ => "the TLS handshake with the client failed",
    };
    Refusal::new(Code::TunnelForbidden, detail).with_cause(cause)
}

impl From<ClientHelloError> for Refusal {
    fn from(error: ClientHelloError) -> Self {
        match error {
            ClientHelloError::NotTls | ClientHelloError::Malformed => {
                not_the_host("the first bytes are not a ClientHello")
            }
            ClientHelloError::TooLarge => not_the_host("the ClientHello is too long"),
            ClientHelloError::ServerNameMismatch(None) => not_the_host("the ClientHello has no server name"),
            ClientHelloError::ServerNameMismatch(Some(name)) => {
                not_the_host(format!("the ClientHello has the server name {name}"))
            }
            ClientHelloError::Timeout => {
                Refusal::new(Code::BodyTimeout, "the client sent no ClientHello within the tls timeout")
            }
            ClientHelloError::Stalled => {
                Refusal::new(Code::BodyTimeout, "the ClientHello did not end within the tls timeout")
            }
            ClientHelloError::Closed => {
                Refusal::malformed("the client closed the tunnel before it sent a ClientHello").client_gone()
            }
        }
    }
}

fn not_the_host(cause: impl ToString) -> Refusal {
    Refusal::new(Code::TunnelForbidden, "the client sent something other than TLS with the host of its CONNECT")
        .with_cause(cause)
}

impl From<CopyError> for Refusal {
    fn from(error: CopyError) -> Self {
        match error {
            // `Tunnel::carry` takes the first two for an ordinary end.
            CopyError::Idle | CopyError::MaxDuration | CopyError::First(_) => {
                Refusal::malformed("the tunnel ended").client_gone()
            }
            CopyError::Second(error) => Refusal::target(Code::ConnectionLost, "aborted the tunnel").with_cause(error),
        }
    }
}
