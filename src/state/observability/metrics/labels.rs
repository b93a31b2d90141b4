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

/// Defines label sets, each with the fields that a full family replaces.
macro_rules! labels {
    ($($(#[$doc:meta])* $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* } overflow { $($open:ident: $value:expr,)* })*) => {$(
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
        pub(super) struct $name { $($(#[$field_doc])* pub(super) $field: $type,)* }

        impl BoundedLabels for $name {
            fn overflow(&self) -> Self {
                let mut labels = self.clone();
                $(labels.$open = $value;)*
                labels
            }
        }
    )*};
}

/// The label set of a metric that has one series or none.
#[derive(Clone, PartialEq, Eq, Hash, Debug, EncodeLabelSet)]
pub(super) struct NoLabels {}

impl BoundedLabels for NoLabels {
    fn overflow(&self) -> Self {
        Self {}
    }
}

labels! {
    RouteLabels { route: RouteLabel, } overflow { route: RouteLabel::Shared, }

    SplitLabels {
        route: RouteLabel,
        /// `main` or `split`.
        side: &'static str,
        code: &'static str,
    } overflow { route: RouteLabel::Shared, }

    ResultLabels { result: &'static str, } overflow { result: OTHERS, }

    SinkLabels {
        /// The URL of a syslog server, or `journald`.
        sink: String,
    } overflow { sink: OTHERS.to_owned(), }

    ReasonLabels {
        /// The key of `[server]` that bounds them, or `unidentified`: the oldest that had proven no client was evicted.
        reason: &'static str,
    } overflow { reason: OTHERS, }

    TokenLabels {
        credential: String,
        /// `granted`, or the code of the refusal.
        result: &'static str,
    } overflow { credential: OTHERS.to_owned(), }

    ReportLabels {
        /// The kind of the rule that only reports, such as `limit`.
        kind: &'static str,
        name: String,
        code: &'static str,
    } overflow { name: OTHERS.to_owned(), }

    PoolLabels {
        pool: String,
        /// `configured` or `usable`.
        state: &'static str,
    } overflow { pool: OTHERS.to_owned(), }

    SourceLabels { pool: String, address: String, } overflow { pool: OTHERS.to_owned(), address: OTHERS.to_owned(), }

    SourceStateLabels {
        pool: String,
        address: String,
        /// `open` or `time_wait`.
        state: &'static str,
    } overflow { pool: OTHERS.to_owned(), address: OTHERS.to_owned(), }

    ConnectLabels {
        pool: String,
        address: String,
        /// The outcome of an attempt in a record.
        result: &'static str,
    } overflow { pool: OTHERS.to_owned(), address: OTHERS.to_owned(), }

    LimitLabels { limit: String, } overflow { limit: OTHERS.to_owned(), }

    DecisionLabels {
        limit: String,
        /// `allowed`, `paced` or `refused`.
        result: &'static str,
    } overflow { limit: OTHERS.to_owned(), }

    HandshakeLabels { version: &'static str, suite: &'static str, } overflow { suite: OTHERS, }

    ExpiryLabels {
        usage: &'static str,
        /// The name of the trust; empty for the listener's certificates.
        trust: String,
        file: String,
    } overflow { trust: OTHERS.to_owned(), file: OTHERS.to_owned(), }

    SignerLabels { signer: String, } overflow { signer: OTHERS.to_owned(), }

    TenantLabels {
        signer: String,
        /// `whole` or `broken`.
        folder: &'static str,
    } overflow { signer: OTHERS.to_owned(), }

    BuildLabels { version: &'static str, arch: &'static str, } overflow { version: OTHERS, }
}
