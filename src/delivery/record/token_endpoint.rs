//! The evidence of a token fetch that failed: the token endpoint, and the connection to it.
//! From which source did the request leave, and which step failed?

use std::net::IpAddr;

use super::Record;
use super::connection::{AttemptEvidence, FailedCertificate, TlsEvidence};
use super::json::impl_write_json;
use super::timing::StepTimes;
use crate::policy::credential::OAuth2;

/// The fields have the names of the record, with the endpoint in the target's place.
#[derive(Clone, Debug)]
pub(in crate::delivery) struct TokenEndpointEvidence {
    credential: String,
    scheme: &'static str,
    host: String,
    port: u16,
    source: Option<IpAddr>,
    address: Option<IpAddr>,
    attempts: Vec<AttemptEvidence>,
    reused: Option<bool>,
    http: Option<&'static str>,
    tls: Option<TlsEvidence>,
    certificate: Option<FailedCertificate>,
    status_class: Option<&'static str>,
    ms: StepTimes,
}
impl_write_json!(TokenEndpointEvidence:
    credential, scheme, host, port, source, address, attempts unless is_empty, reused, http, tls,
    certificate unless is_none, status_class, ms);

impl Record {
    /// Returns the evidence in this record of a request for a token.
    pub(in crate::delivery) fn into_endpoint_evidence(mut self, oauth2: &OAuth2) -> TokenEndpointEvidence {
        let endpoint = &oauth2.endpoint;
        TokenEndpointEvidence {
            credential: oauth2.credential.to_string(),
            scheme: endpoint.scheme.as_str(),
            host: endpoint.host.to_string(),
            port: endpoint.port,
            source: self.evidence.source,
            address: self.evidence.address,
            attempts: std::mem::take(&mut self.evidence.attempts),
            reused: self.evidence.reused,
            http: self.evidence.http,
            tls: self.evidence.tls.take(),
            certificate: self.evidence.certificate.take(),
            status_class: self.evidence.status_class,
            ms: self.timer.take_times(),
        }
    }

    /// Sets why this delivery has no token. Deliveries that wait for the same fetch get the same evidence.
    pub(in crate::delivery) fn lacks_token(&mut self, evidence: TokenEndpointEvidence) {
        self.evidence.token_endpoint = Some(Box::new(evidence));
    }
}
