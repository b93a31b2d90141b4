//! The evidence of a token that could not be fetched: the token endpoint, and the connection to it.
//! From where was the endpoint asked, and how far did the request come?

use std::net::IpAddr;

use serde::Serialize;

use super::Record;
use super::connection::{AttemptEvidence, FailedCertificate, TlsEvidence};
use super::timing::StepTimes;
use crate::policy::credential::OAuth2;

/// Names are those of the record, with the endpoint in the target's place.
#[derive(Serialize, Clone, Debug)]
pub(in super::super) struct TokenEndpointEvidence {
    credential: String,
    scheme: &'static str,
    host: String,
    port: u16,
    source: Option<IpAddr>,
    address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    attempts: Vec<AttemptEvidence>,
    reused: Option<bool>,
    http: Option<&'static str>,
    tls: Option<TlsEvidence>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: Option<FailedCertificate>,
    status_class: Option<&'static str>,
    ms: StepTimes,
}

impl Record {
    /// Gives what this record of a request for a token has gathered.
    pub(in super::super) fn into_endpoint_evidence(mut self, oauth2: &OAuth2) -> TokenEndpointEvidence {
        let endpoint = &oauth2.endpoint;
        TokenEndpointEvidence {
            credential: oauth2.credential.to_string(),
            scheme: endpoint.scheme.as_str(),
            host: endpoint.host.to_string(),
            port: endpoint.port,
            source: self.source,
            address: self.address,
            attempts: std::mem::take(&mut self.attempts),
            reused: self.reused,
            http: self.http,
            tls: self.tls.take(),
            certificate: self.certificate.take(),
            status_class: self.status_class,
            ms: self.timer.take_times(),
        }
    }

    /// Says why this delivery has no token. Deliveries that wait for one fetch have the same evidence.
    pub(in super::super) fn lacks_token(&mut self, evidence: TokenEndpointEvidence) {
        self.token_endpoint = Some(Box::new(evidence));
    }
}
