//! The refusals that the audit log counts: failed authentication, and targets that the guard denies.
//! Which clients try what they may not do?

use jiff::Timestamp;

use super::Record;
use crate::audit::{AUTHENTICATION_FAILED, Actor, EventType, Source, TARGET_DENIED};
use crate::delivery::refusal::Code;
use crate::names::ClientName;
use crate::state::audit::CountedEvent;

/// The refusals of clients that did not prove who they are, or may not do what they ask for.
const AUTHENTICATION_CODES: [Code; 2] = [Code::ClientUnauthenticated, Code::ClientForbidden];
/// The refusals of the guard.
const GUARD_CODES: [Code; 3] = [Code::TargetForbidden, Code::TargetPortForbidden, Code::TargetLoopsBack];

impl Record {
    /// Counts the outcome of this delivery, if it concerns security. Only a client that the request proves is the actor:
    /// a claimed name is no proof.
    pub(super) fn count_denial(&self, code: &str) {
        if !self.runtime.audit.status().is_on() {
            return;
        }
        let Some(event_type) = event_type(code) else { return };
        let client = self.evidence.client.as_ref().map(ClientName::as_str);
        let actor = Actor { source: Source::Client, name: client.map(str::to_owned), address: None };
        let claimed_client = self.evidence.claimed_client.clone();
        let tenant =
            self.evidence.tenant.as_ref().map(|tenant| self.redactor.tenant(tenant, self.evidence.is_tenant_proven));
        let tenant = tenant.map(|tenant| tenant.as_str().to_owned());
        let counted = CountedEvent { event_type, resource: code.to_owned(), actor, claimed_client, tenant };
        self.runtime.audit.count(counted, self.peer, Timestamp::now());
    }
}

fn event_type(code: &str) -> Option<EventType> {
    let is_one_of = |codes: &[Code]| codes.iter().any(|refused| refused.name() == code);
    match () {
        () if is_one_of(&AUTHENTICATION_CODES) => Some(AUTHENTICATION_FAILED),
        () if is_one_of(&GUARD_CODES) => Some(TARGET_DENIED),
        () => None,
    }
}
