//! The evidence of a connection: each attempt to connect, and the certificate of a handshake that failed.
//! Which addresses did a delivery use, and which certificate did the target send?

use std::net::IpAddr;

use super::Record;
use super::json::{WriteJson, impl_write_json};
use super::timing::{Milliseconds, Step};
use crate::net::dial::DialReport;
use crate::net::http_client::Connection;
use crate::net::tls::{self, CertificateSummary};
use crate::policy::egress::Hop;

/// Attempts that one record has at most.
const ATTEMPTS_MAX: usize = 16;

/// One attempt to connect.
#[derive(Clone, Debug)]
pub(super) struct AttemptEvidence {
    source: IpAddr,
    address: IpAddr,
    /// The outcome of a [`crate::net::dial::ConnectAttempt`].
    outcome: &'static str,
    ms: Milliseconds,
}
impl_write_json!(AttemptEvidence: source, address, outcome, ms);

/// The certificate that a target sent in a handshake that failed.
#[derive(Clone, Debug)]
pub(super) struct FailedCertificate {
    certificate: Box<CertificateSummary>,
    /// The details of the refusal, or `accepted`, or `unverified` if the trust verifies nothing.
    verdict: &'static str,
}

impl_write_json!(CertificateSummary:
    common_name, names, more_names, issuer, not_before, not_after, serial, sha256);

/// Writes one object: the verdict follows the fields of the certificate.
impl WriteJson for FailedCertificate {
    fn write_json(&self, line: &mut Vec<u8>) {
        self.certificate.write_json(line);
        line.pop();
        line.extend_from_slice(b",\"verdict\":");
        self.verdict.write_json(line);
        line.push(b'}');
    }
}

#[derive(Clone, Debug)]
pub(super) struct TlsEvidence {
    pub(super) version: &'static str,
    pub(super) suite: &'static str,
    certificate_expires: jiff::Timestamp,
    /// `false`: the route's trust says `verify = "none"`.
    pub(super) verified: bool,
}
impl_write_json!(TlsEvidence: version, suite, certificate_expires, verified);

impl Record {
    /// Clears the evidence of a former connection before a new one is opened.
    pub(in crate::delivery) fn needs_connection(&mut self) {
        (self.evidence.reused, self.evidence.http, self.evidence.tls) = (None, None, None);
    }

    /// Begins the step. A delivery that ends during the step has the first hop in its record.
    pub(in crate::delivery) fn dials(&mut self, hops: &[Hop]) {
        hops.first().into_iter().for_each(|hop| self.set_hop(*hop));
        self.begin(Step::Connect);
    }

    pub(in crate::delivery) fn dialled(&mut self, report: &DialReport) {
        self.step(Step::Connect);
        report.hop().into_iter().for_each(|hop| self.set_hop(hop));
        if report.outcome.is_ok() && report.attempts.len() == 1 {
            return;
        }
        let room = ATTEMPTS_MAX - self.evidence.attempts.len();
        self.evidence.attempts.extend(report.attempts.iter().take(room).map(|attempt| AttemptEvidence {
            source: attempt.hop.seen_as(),
            address: attempt.hop.to().ip(),
            outcome: attempt.outcome,
            ms: Milliseconds(attempt.elapsed),
        }));
    }

    pub(in crate::delivery) fn set_connection(&mut self, connection: &Connection, reused: bool) {
        self.set_hop(connection.hop());
        (self.evidence.reused, self.evidence.http, self.evidence.tls) =
            (Some(reused), Some(connection.http_version()), None);
        connection.handshake_info().into_iter().for_each(|handshake| self.set_handshake(handshake));
        self.timer.mark();
    }

    pub(in crate::delivery) fn set_hop(&mut self, hop: Hop) {
        (self.evidence.source, self.evidence.address) = (Some(hop.seen_as()), Some(hop.to().ip()));
        self.evidence.local = Some(hop.from()).filter(|local| *local != hop.seen_as());
    }

    /// Sets the evidence of the handshake that has verified the target.
    pub(in crate::delivery) fn set_handshake(&mut self, handshake: &tls::HandshakeInfo) {
        let &tls::HandshakeInfo { version, suite, expires, verified, .. } = handshake;
        self.evidence.tls = Some(TlsEvidence { version, suite, certificate_expires: expires, verified });
    }

    /// Sets the certificate that the target sent in a handshake that failed.
    pub(in crate::delivery) fn failed_certificate(
        &mut self,
        certificate: Option<Box<CertificateSummary>>,
        verdict: &'static str,
    ) {
        self.evidence.certificate = certificate.map(|mut certificate| {
            let CertificateSummary { common_name, names, issuer, .. } = &mut *certificate;
            for text in common_name.iter_mut().chain(names).chain(issuer) {
                *text = self.redactor.text(text).to_string();
            }
            FailedCertificate { certificate, verdict }
        });
    }
}
