//! The label sets of the metrics.
//! Which labels does a series have, and what bounds their values?
//!
//! A value comes from the code, or from a name in the configuration. `*` stands for all further values of a full family;
//! no name in the configuration contains it.

use std::collections::HashSet;
use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, LabelValueEncoder};

use super::family::BoundedLabels;
use crate::names::RouteName;

const OTHERS: &str = "*";

/// The label of a route.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(super) enum RouteLabel {
    /// The request was refused before it had a route: the label is empty.
    Unrouted,
    /// The route shares its series with others.
    Shared,
    Own(RouteName),
}

impl RouteLabel {
    /// Returns whether the series stays while only these routes have their own.
    pub(super) fn is_in(&self, own: &HashSet<&RouteName>) -> bool {
        match self {
            Self::Own(name) => own.contains(name),
            Self::Unrouted | Self::Shared => true,
        }
    }

    pub(super) fn as_str(&self) -> &str {
        match self {
            Self::Unrouted => "",
            Self::Shared => OTHERS,
            Self::Own(name) => name.as_str(),
        }
    }
}

impl EncodeLabelValue for RouteLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        EncodeLabelValue::encode(&self.as_str(), encoder)
    }
}

/// The value of a label.
trait LabelValue: Clone {
    /// Returns the value in the series that counts for all further labels. The values of the code are few: they stay.
    fn overflow(&self) -> Self {
        self.clone()
    }
}

impl LabelValue for &'static str {}

impl LabelValue for String {
    fn overflow(&self) -> Self {
        OTHERS.to_owned()
    }
}

impl LabelValue for RouteLabel {
    fn overflow(&self) -> Self {
        Self::Shared
    }
}

macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
        pub(super) struct $name { $($(#[$field_doc])* pub(super) $field: $type,)* }

        impl BoundedLabels for $name {
            fn overflow(&self) -> Self {
                Self { $($field: self.$field.overflow(),)* }
            }
        }
    )*};
}

labels! {
    /// The label set of a metric that has one series or none.
    NoLabels {}

    ResourceLabels { resource: &'static str, }

    RouteLabels { route: RouteLabel, }

    SplitLabels {
        route: RouteLabel,
        /// `main` or `split`.
        side: &'static str,
        code: &'static str,
    }

    ResultLabels { result: &'static str, }

    SinkLabels {
        /// The URL of a syslog server, or `journald`.
        sink: String,
    }

    AlertLabels { name: &'static str, }

    ProblemLabels { problem: &'static str, }

    ReasonLabels {
        /// The key of `[server]` that bounds them, or `unidentified`: the oldest that had proven no client was evicted.
        reason: &'static str,
    }

    TokenLabels {
        credential: String,
        /// `granted`, or the code of the refusal.
        result: &'static str,
    }

    ReportLabels {
        /// The kind of the rule that only reports, such as `limit`.
        kind: &'static str,
        name: String,
        code: &'static str,
    }

    PoolLabels {
        pool: String,
        /// `configured` or `usable`.
        state: &'static str,
    }

    SourceLabels { pool: String, address: String, }

    SourceStateLabels {
        pool: String,
        address: String,
        /// `open` or `time_wait`.
        state: &'static str,
    }

    ConnectLabels {
        pool: String,
        address: String,
        /// The outcome of an attempt in a record.
        result: &'static str,
    }

    LimitLabels { limit: String, }

    DecisionLabels {
        limit: String,
        /// `allowed`, `paced` or `refused`.
        result: &'static str,
    }

    HandshakeLabels { version: &'static str, suite: &'static str, }

    ExpiryLabels {
        usage: &'static str,
        /// The name of the trust; empty for the listener's certificates.
        trust: String,
        file: String,
    }

    SignerLabels { signer: String, }

    TenantLabels {
        signer: String,
        /// `valid` or `broken`.
        folder: &'static str,
    }

    CaptureLabels {
        capture: String,
        /// `stored`, `no_recipients`, `dropped`, `full` or `failed`.
        result: &'static str,
    }

    BuildLabels { version: &'static str, arch: &'static str, }
}
