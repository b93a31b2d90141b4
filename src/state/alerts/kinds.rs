//! The conditions that raise an alert, each with its consequence and the next step.
//! What does a condition mean for the operator?
//!
//! A condition that Prometheus finds, too, has the name of the alert in `packaging/prometheus/alerts.yml`.

use serde::Serialize;

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertSeverity {
    Warning,
    Critical,
}

/// A kind of alert.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct AlertKind {
    pub name: &'static str,
    pub severity: AlertSeverity,
    pub consequence: &'static str,
    pub next: &'static str,
}

macro_rules! alert_kinds {
    ($($constant:ident = $name:literal, $severity:ident, $consequence:literal, $next:literal;)*) => {
        $(pub static $constant: AlertKind = AlertKind {
            name: $name, severity: AlertSeverity::$severity, consequence: $consequence, next: $next,
        };)*
        /// All kinds.
        pub static ALERT_KINDS: &[&AlertKind] = &[$(&$constant),*];
    };
}

alert_kinds! {
    VERIFICATION_OFF = "OutgateVerificationOff", Warning,
        "webhooks may go to targets that did not prove their name",
        "set verify = \"full\" in this trust";
    POOL_EMPTY = "OutgatePoolEmpty", Critical,
        "outgate refuses the webhooks of this pool as no_egress",
        "run `outgate egress verify`, and give this host the addresses that it lists, unless another host has them";
    ADDRESS_LOST = "OutgateAddressLost", Warning,
        "webhooks leave from fewer addresses than the pool announces",
        "run `outgate egress verify`, and give this host the addresses that it lists, unless another host has them";
    ADDRESS_CUT_OFF = "OutgateAddressCutOff", Warning,
        "outgate prefers the other source addresses",
        "look for a firewall or a route that drops the packets of this address";
    PORTS_NEARLY_OUT = "OutgatePortsNearlyOut", Critical,
        "new connections from this address to the same target will fail",
        "add addresses to the pool, widen net.ipv4.ip_local_port_range, or let connections be reused";
    REFUSES_WEBHOOKS = "OutgateRefusesWebhooks", Critical,
        "clients must send these webhooks again",
        "run `outgate deliveries --since 10m`: docs/runbook.md says what to do for each code";
    TARGETS_FAIL = "OutgateTargetsFail", Warning,
        "clients must send these webhooks again",
        "run `outgate deliveries --since 10m`: it names the targets and the reasons";
    CLIENTS_REFUSED = "OutgateClientsRefused", Warning,
        "these webhooks are not sent",
        "run `outgate deliveries --since 10m`: it names the clients and the reasons";
    TENANT_FAILS = "OutgateTenantFails", Warning,
        "this tenant gets no webhook",
        "run `outgate deliveries --tenant TENANT`: blame and code name the party that must act";
    ALLOW_LIST_GAP = "OutgateAllowListGap", Warning,
        "webhooks from the source addresses that the target drops arrive late or fail",
        "send the target's owner the list of `outgate egress list`";
    UNANNOUNCED_RANGE = "OutgateUnannouncedRange", Warning,
        "customers who have not allowed the range lose webhooks",
        "tell the customers, or give the range a later `from`";
    DNS_OUTAGE = "OutgateDnsOutage", Critical,
        "names that are not cached fail with name_timeout",
        "look at the name servers and at the way to them";
    FLEET_STORE_AWAY = "OutgateFleetStoreAway", Critical,
        "this instance refuses signed requests unless `fleet.replay` permits them; rollouts and moves wait",
        "look at the store of the fleet, and at the way to it";
    FLEET_RANGE_WITHOUT_HOST = "OutgateFleetRangeWithoutHost", Critical,
        "no webhook leaves from addresses that customers allow",
        "run `outgate fleet status`: give the addresses to a host, or release an assignment whose instance is gone";
    FLEET_INSTANCE_LOST = "OutgateFleetInstanceLost", Warning,
        "the other instances send the webhooks of this one, and its own addresses send none",
        "run `outgate fleet status`: start outgate on its host, or run `outgate fleet forget` if it does not return";
    FLEET_RANGE_CLAIMED_TWICE = "OutgateFleetRangeClaimedTwice", Critical,
        "webhooks of one of the hosts fail, because the responses reach the other",
        "run `outgate fleet status`, and take the addresses from all hosts but one";
    FLEET_RANGE_NOT_ON_HOST = "OutgateFleetRangeNotOnHost", Warning,
        "the instance sends from fewer addresses than its file lists, and load balancers send it less",
        "run `outgate fleet status`: give the addresses to the host, or remove the range from its file";
    FLEET_INSTANCE_DIFFERS = "OutgateFleetInstanceDiffers", Warning,
        "the instances do not keep the same promises",
        "run `outgate fleet status`: it names the instance and what differs";
    FLEET_ROLLOUT_FAILED = "OutgateFleetRolloutFailed", Warning,
        "the instances keep their former bundle or return to it, and a host that joins has none",
        "run `outgate fleet rollout --status`, correct the reason, and start a new rollout; or repeat the last good one";
    FLEET_ROLLOUT_WAITS = "OutgateFleetRolloutWaits", Warning,
        "instances of the fleet do not adopt the bundle",
        "run `outgate fleet status`: approve the change, make the instance ready, or repeat or abort the rollout";
    FLEET_BUNDLE_UNREADABLE = "OutgateFleetBundleUnreadable", Warning,
        "the instance adopts no bundle, and the rollout waits for it",
        "run `outgate fleet status`: it has the error; look at the bucket `fleet.bundles` and its credentials";
    CERTIFICATE_ENDS = "OutgateCertificateEnds", Warning,
        "peers refuse a certificate after its end",
        "replace the file: outgate loads it at once";
    SIGNING_KEY_ENDS = "OutgateSigningKeyEnds", Warning,
        "outgate refuses webhooks that this signer cannot sign",
        "add a key that follows: `outgate keys new`";
    PANICKED = "OutgatePanicked", Critical,
        "a delivery or a connection ended early, and the cause may come back",
        "search the log for `has a bug`, and report the line: it names the place in the source";
    RELOAD_FAILED = "OutgateReloadFailed", Warning,
        "the former configuration stays active",
        "run `outgate check`, correct the problems, and run `outgate reload`";
    CONFIG_DRIFT = "OutgateConfigDrift", Warning,
        "the next reload or restart changes what runs",
        "run `outgate diff`, then `outgate reload` or restore the file";
    RESTART_PENDING = "OutgateRestartPending", Warning,
        "this setting has its former value until outgate restarts",
        "restart outgate at a time that suits you";
    HISTORY_FAILED = "OutgateHistoryFailed", Warning,
        "a rollback would not find the active configuration",
        "look at the disk of server.state";
    RECORDS_LOST = "OutgateRecordsLost", Critical,
        "delivery records are missing, and traffic goes on",
        "look at the disk of log.deliveries";
    LOG_NOT_REOPENED = "OutgateLogNotReopened", Warning,
        "delivery records go to a file that is no longer at its path",
        "look at the folder of log.deliveries and its permissions";
    LOG_LINES_LOST = "OutgateLogLinesLost", Warning,
        "log lines are missing",
        "look at the reader of stderr, such as the journal";
    AUDIT_UNWRITABLE = "OutgateAuditUnwritable", Critical,
        "configuration changes are refused, and traffic goes on",
        "look at the disk of audit.file";
    AUDIT_DEGRADED = "OutgateAuditDegraded", Warning,
        "the file has all audit records, and its copies or its checkpoint are late",
        "look at the server, the journal or the file that the sentence names";
}
