//! The evidence of the way to a target: each attempt to connect, and the certificate of a handshake that failed.
//! Which addresses did a delivery use, and what did the target's certificate say?

use std::net::IpAddr;

use serde::Serialize;

use super::Record;
use super::timing::{Step, milliseconds};
use crate::net::dial::DialReport;
use crate::net::http_client::Connection;
use crate::net::tls::{self, CertificateSummary};
use crate::policy::egress::Hop;

/// Attempts that one record has.
const ATTEMPTS_MAX: usize = 16;

/// One attempt to connect.
#[derive(Serialize, Clone, Debug)]
pub(super) struct AttemptEvidence {
    source: IpAddr,
    address: IpAddr,
    /// A word of [`crate::net::dial::ConnectAttempt`].
    outcome: &'static str,
    ms: f64,
}

/// The certificate of a target, in a handshake that failed.
#[derive(Serialize, Clone, Debug)]
pub(super) struct FailedCertificate {
    #[serde(flatten)]
    certificate: Box<CertificateSummary>,
    /// The word of the refusal, or `accepted`, or `unverified` where the trust verifies nothing.
    verdict: &'static str,
}

#[derive(Serialize, Clone, Debug)]
pub(super) struct TlsEvidence {
    version: &'static str,
    suite: &'static str,
    certificate_expires: jiff::Timestamp,
    /// `false`: the route's trust says `verify = "none"`.
    pub(super) verified: bool,
}

impl Record {
    /// A new connection is needed: what is known of a former one is not its evidence.
    pub(in super::super) fn needs_connection(&mut self) {
        (self.reused, self.http, self.tls) = (None, None, None);
    }

    /// The first of the hops is in the record of a delivery that ends meanwhile.
    pub(in super::super) fn dials(&mut self, hops: &[Hop]) {
        hops.first().into_iter().for_each(|hop| self.leaves_by(*hop));
        self.begin(Step::Connect);
    }

    pub(in super::super) fn dialled(&mut self, dialling: &DialReport) {
        self.step(Step::Connect);
        dialling.hop.into_iter().for_each(|hop| self.leaves_by(hop));
        if dialling.outcome.is_ok() && dialling.attempts.len() == 1 {
            return;
        }
        let room = ATTEMPTS_MAX - self.attempts.len();
        self.attempts.extend(dialling.attempts.iter().take(room).map(|attempt| AttemptEvidence {
            source: attempt.hop.from(),
            address: attempt.hop.to().ip(),
            outcome: attempt.outcome,
            ms: milliseconds(attempt.elapsed),
        }));
    }

    pub(in super::super) fn set_connection(&mut self, connection: &Connection, reused: bool) {
        self.leaves_by(connection.hop());
        (self.reused, self.http, self.tls) = (Some(reused), Some(connection.http_version()), None);
        connection.handshake_info().into_iter().for_each(|proof| self.proven(proof));
        self.timer.mark();
    }

    pub(in super::super) fn leaves_by(&mut self, hop: Hop) {
        (self.source, self.address) = (Some(hop.from()), Some(hop.to().ip()));
    }

    /// On this connection, or of a tunnel's target on one of our own.
    pub(in super::super) fn proven(&mut self, proof: &tls::HandshakeInfo) {
        let &tls::HandshakeInfo { version, suite, expires, verified, .. } = proof;
        self.tls = Some(TlsEvidence { version, suite, certificate_expires: expires, verified });
    }

    /// The target has shown this certificate in a handshake that failed.
    pub(in super::super) fn failed_certificate(
        &mut self,
        certificate: Option<Box<CertificateSummary>>,
        verdict: &'static str,
    ) {
        self.certificate = certificate.map(|certificate| FailedCertificate { certificate, verdict });
    }
}
