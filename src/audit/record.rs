//! One record of the audit log: a change or a security event, as one line of JSON.
//! Which names does a record have?
//!
//! The fields follow Twilio's Monitor Events (`event_type`, `actor_sid`, `resource_type`, `event_data` …). Each record
//! also has the class of the Open Cybersecurity Schema Framework (OCSF) that it belongs to.

use std::net::IpAddr;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::tree::hash;
use crate::digest::Sha256;
use crate::names::SyslogSeverity;

/// The released version of OCSF that the identifiers are of.
const OCSF_VERSION: &str = "1.6.0";

/// The kind of a record, by which auditors filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// The configuration, clients, keys and tokens.
    Account,
    /// The addresses that outgate sends from.
    Address,
    /// A call of the admin listener that changed nothing.
    Actor,
    /// The process, the audit log itself, and requests that were refused.
    Other,
}

/// The origin of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A user of the admin listener.
    Admin,
    /// A signal of the service manager or of a shell.
    Signal,
    /// A file that changed.
    File,
    /// Operators of the fleet, whose signatures a bundle has.
    Fleet,
    /// A client of the proxy.
    Client,
    /// outgate itself.
    Internal,
}

/// An action on a resource, with its identifiers in OCSF.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventType {
    /// `RESOURCE.ACTION`.
    pub name: &'static str,
    pub kind: Kind,
    class: u32,
    activity: u32,
    /// OCSF's `severity_id`: 1 informational, 3 medium, 4 high.
    severity: u32,
}

impl EventType {
    /// Returns the severity of its records at a syslog server and in the journal.
    pub fn syslog_severity(self) -> SyslogSeverity {
        match self.severity {
            HIGH => SyslogSeverity::Error,
            MEDIUM => SyslogSeverity::Warning,
            _ => SyslogSeverity::Informational,
        }
    }
}

/// OCSF: API Activity, for changes. Its activities: 2 Read, 3 Update, 4 Delete, 99 Other.
const API_ACTIVITY: u32 = 6003;
/// OCSF: Application Lifecycle. Its activities: 3 Start, 4 Stop, 99 Other.
const APPLICATION_LIFECYCLE: u32 = 6002;
/// OCSF: Authentication. Its activity: 1 Logon.
const AUTHENTICATION: u32 = 3002;
/// OCSF: Network Activity. Its activities: 5 Refuse, 99 Other.
const NETWORK_ACTIVITY: u32 = 4001;

const INFORMATIONAL: u32 = 1;
const MEDIUM: u32 = 3;
const HIGH: u32 = 4;

macro_rules! event_types {
    ($($constant:ident = $name:literal, $kind:ident, $class:ident, $activity:literal, $severity:ident;)*) => {
        $(pub const $constant: EventType = EventType {
            name: $name, kind: Kind::$kind, class: $class, activity: $activity, severity: $severity,
        };)*
    };
}

event_types! {
    PROCESS_STARTED = "process.started", Other, APPLICATION_LIFECYCLE, 3, INFORMATIONAL;
    PROCESS_DRAINING = "process.draining", Other, APPLICATION_LIFECYCLE, 99, INFORMATIONAL;
    PROCESS_UNDRAINED = "process.undrained", Other, APPLICATION_LIFECYCLE, 99, INFORMATIONAL;
    PROCESS_STOPPED = "process.stopped", Other, APPLICATION_LIFECYCLE, 4, INFORMATIONAL;
    CONFIGURATION_UPDATED = "configuration.updated", Account, API_ACTIVITY, 3, INFORMATIONAL;
    CONFIGURATION_ROLLED_BACK = "configuration.rolled_back", Account, API_ACTIVITY, 3, MEDIUM;
    CONFIGURATION_REJECTED = "configuration.rejected", Account, API_ACTIVITY, 99, MEDIUM;
    CONFIGURATION_WITHDRAWN = "configuration.withdrawn", Account, API_ACTIVITY, 99, MEDIUM;
    CONFIGURATION_DRIFTED = "configuration.drifted", Account, API_ACTIVITY, 99, MEDIUM;
    CONFIGURATION_RESTORED = "configuration.restored", Account, API_ACTIVITY, 99, INFORMATIONAL;
    ROLLOUT_STARTED = "rollout.started", Account, API_ACTIVITY, 1, MEDIUM;
    ROLLOUT_APPROVED = "rollout.approved", Account, API_ACTIVITY, 3, MEDIUM;
    ROLLOUT_ABORTED = "rollout.aborted", Account, API_ACTIVITY, 3, MEDIUM;
    ROLLOUT_FAILED = "rollout.failed", Account, API_ACTIVITY, 99, MEDIUM;
    KEY_UPDATED = "key.updated", Account, API_ACTIVITY, 3, MEDIUM;
    TOKEN_UPDATED = "token.updated", Account, API_ACTIVITY, 3, MEDIUM;
    LOG_UPDATED = "log.updated", Account, API_ACTIVITY, 3, INFORMATIONAL;
    AUDIT_UPDATED = "audit.updated", Account, API_ACTIVITY, 3, HIGH;
    CAPTURE_UPDATED = "capture.updated", Account, API_ACTIVITY, 3, MEDIUM;
    CAPTURE_EXPORTED = "capture.exported", Actor, API_ACTIVITY, 2, MEDIUM;
    CAPTURE_ERASED = "capture.erased", Account, API_ACTIVITY, 4, MEDIUM;
    CAPTURE_EXPIRED = "capture.expired", Account, API_ACTIVITY, 4, INFORMATIONAL;
    VERIFICATION_DISABLED = "verification.disabled", Account, API_ACTIVITY, 99, HIGH;
    VERIFICATION_ENABLED = "verification.enabled", Account, API_ACTIVITY, 99, INFORMATIONAL;
    ADMIN_CALLED = "admin.called", Actor, API_ACTIVITY, 2, INFORMATIONAL;
    AUTHENTICATION_FAILED = "authentication.failed", Other, AUTHENTICATION, 1, MEDIUM;
    TARGET_DENIED = "target.denied", Other, NETWORK_ACTIVITY, 5, MEDIUM;
    ADDRESS_LOST = "address.lost", Address, NETWORK_ACTIVITY, 99, HIGH;
    ADDRESS_FOUND = "address.found", Address, NETWORK_ACTIVITY, 99, INFORMATIONAL;
    ADDRESS_FORCED = "address.forced", Address, NETWORK_ACTIVITY, 99, HIGH;
    ADDRESS_ASSIGNED = "address.assigned", Address, API_ACTIVITY, 3, MEDIUM;
    ADDRESS_RELEASED = "address.released", Address, API_ACTIVITY, 3, MEDIUM;
    INSTANCE_FORGOTTEN = "instance.forgotten", Other, API_ACTIVITY, 4, MEDIUM;
    ADDRESS_UNANSWERED = "address.unanswered", Address, NETWORK_ACTIVITY, 99, HIGH;
    ADDRESS_RETRIED = "address.retried", Address, NETWORK_ACTIVITY, 99, INFORMATIONAL;
    ALERT_BEGAN = "alert.began", Other, APPLICATION_LIFECYCLE, 99, MEDIUM;
    ALERT_RESOLVED = "alert.resolved", Other, APPLICATION_LIFECYCLE, 99, INFORMATIONAL;
    AUDIT_CONTINUED = "audit.continued", Other, APPLICATION_LIFECYCLE, 99, INFORMATIONAL;
    AUDIT_RECOVERED = "audit.recovered", Other, APPLICATION_LIFECYCLE, 99, MEDIUM;
    AUDIT_REMOVED = "audit.removed", Other, APPLICATION_LIFECYCLE, 99, HIGH;
    AUDIT_GAP = "audit.gap", Other, APPLICATION_LIFECYCLE, 99, HIGH;
    AUDIT_EXPIRED = "audit.expired", Other, APPLICATION_LIFECYCLE, 99, INFORMATIONAL;
}

/// The person, program or file that caused an event.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Actor {
    pub source: Source,
    /// The user or client; `None` if outgate knows none.
    pub name: Option<String>,
    pub address: Option<IpAddr>,
}

/// An event that is to be recorded.
#[derive(Clone, Debug)]
pub struct Event {
    pub event_type: EventType,
    /// The name of the resource. The first part of the event type is its type.
    pub resource: String,
    pub actor: Actor,
    pub at: Timestamp,
    /// One sentence for a reader.
    pub description: String,
    pub data: Map<String, Value>,
}

impl Event {
    /// Returns an event that outgate itself caused.
    pub fn new(
        event_type: EventType,
        resource: impl Into<String>,
        at: Timestamp,
        description: impl Into<String>,
    ) -> Self {
        let actor = Actor { source: Source::Internal, name: None, address: None };
        Self { event_type, resource: resource.into(), actor, at, description: description.into(), data: Map::new() }
    }

    #[must_use]
    pub fn by(self, actor: Actor) -> Self {
        Self { actor, ..self }
    }

    /// Adds a member of `event_data`.
    #[must_use]
    pub fn with(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.data.insert(name.to_owned(), value.into());
        self
    }
}

/// The line. Auditors' tools read its field names, so a name never changes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Counts the records of a log from 0.
    pub seq: u64,
    /// SHA-256 of the line before, without its line feed, in hexadecimal digits; zeros in the first record.
    pub prev: String,
    pub sid: String,
    pub event_date: Timestamp,
    /// The milliseconds by which the clock was set back since the record before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_set_back_ms: Option<u64>,
    pub event_type: String,
    pub kind: Kind,
    pub account_sid: String,
    pub actor_type: String,
    pub actor_sid: Option<String>,
    pub source: Source,
    pub source_ip_address: Option<IpAddr>,
    pub resource_type: String,
    pub resource_sid: String,
    pub description: String,
    pub event_data: Map<String, Value>,
    pub metadata: SchemaVersion,
    pub category_uid: u32,
    pub class_uid: u32,
    pub activity_id: u32,
    pub type_uid: u32,
    pub severity_id: u32,
}

/// OCSF's `metadata`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SchemaVersion {
    pub version: String,
}

/// The position of a record: what it says of the records before.
pub(super) struct Position {
    pub(super) seq: u64,
    pub(super) prev: Sha256,
    pub(super) clock_set_back_ms: Option<u64>,
}

impl Record {
    pub(super) fn new(position: &Position, origin: &str, event: Event) -> Self {
        let Position { seq, prev, clock_set_back_ms } = *position;
        let Event { event_type, resource, actor, at, description, data } = event;
        let EventType { name, kind, class, activity, severity } = event_type;
        let actor_type = match (actor.source, &actor.name) {
            (_, None) => "outgate",
            (Source::Client, _) => "client",
            _ => "user",
        };
        Self {
            seq,
            prev: HEXLOWER.encode(&prev),
            sid: sid(origin, seq, &prev, at),
            event_date: at,
            clock_set_back_ms,
            event_type: name.to_owned(),
            kind,
            account_sid: origin.to_owned(),
            actor_type: actor_type.to_owned(),
            actor_sid: actor.name,
            source: actor.source,
            source_ip_address: actor.address,
            resource_type: name.split('.').next().unwrap_or(name).to_owned(),
            resource_sid: resource,
            description,
            event_data: data,
            metadata: SchemaVersion { version: OCSF_VERSION.to_owned() },
            // OCSF: a class has the number of its category in front, and a type that of its class.
            category_uid: class / 1000,
            class_uid: class,
            activity_id: activity,
            type_uid: class * 100 + activity,
            severity_id: severity,
        }
    }
}

/// Returns the identifier of a record, in the form of Twilio's: `AE` and 32 hexadecimal digits.
fn sid(origin: &str, seq: u64, prev: &Sha256, at: Timestamp) -> String {
    let hash = hash(&[origin.as_bytes(), &seq.to_be_bytes(), prev, &at.as_nanosecond().to_be_bytes()]);
    format!("AE{}", HEXLOWER.encode(&hash[..16]))
}
