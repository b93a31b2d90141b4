//! The scripts that the store runs. Each works on one key and those that follow from it, and reads the server's clock.
//! Which function decides for the whole fleet?

use std::fmt::Display;
use std::sync::LazyLock;

use redis::{Script, ScriptInvocation};

/// A function of the store. The files `*.lua` state the arguments and the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreScript {
    Announce,
    ReadAnnouncements,
    Assign,
    TakeTokens,
    LeasePermits,
    /// The names of the live instances.
    LiveInstances,
    StartRollout,
    ReportRollout,
    ShareHints,
}

static TAKE_TOKENS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("take_tokens.lua")));
static LEASE_PERMITS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease_permits.lua")));
static LIVE_INSTANCES: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("live_instances.lua")));
static START_ROLLOUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("start_rollout.lua")));
static REPORT_ROLLOUT: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("report_rollout.lua")));
static SHARE_HINTS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("share_hints.lua")));
static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("announce.lua")));
static ASSIGN: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("assign.lua")));
static READ_ANNOUNCEMENTS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("read_announcements.lua")));

impl StoreScript {
    /// Returns the names that follow the key in the further keys of the script. The slot of a cluster is the same.
    fn suffixes(self) -> &'static [&'static str] {
        match self {
            Self::Announce => &["announcements", "state"],
            Self::ReadAnnouncements | Self::LiveInstances => &["announcements"],
            Self::TakeTokens | Self::LeasePermits | Self::ShareHints | Self::StartRollout | Self::ReportRollout => &[],
            Self::Assign => &["state"],
        }
    }

    pub(super) fn invocation(self, key: &str, arguments: &[&(dyn Display + Sync)]) -> ScriptInvocation<'static> {
        let script: &'static Script = match self {
            Self::Announce => &ANNOUNCE,
            Self::ReadAnnouncements => &READ_ANNOUNCEMENTS,
            Self::Assign => &ASSIGN,
            Self::TakeTokens => &TAKE_TOKENS,
            Self::LeasePermits => &LEASE_PERMITS,
            Self::LiveInstances => &LIVE_INSTANCES,
            Self::StartRollout => &START_ROLLOUT,
            Self::ReportRollout => &REPORT_ROLLOUT,
            Self::ShareHints => &SHARE_HINTS,
        };
        let mut invocation = script.key(key);
        for suffix in self.suffixes() {
            invocation.key(format!("{key}:{suffix}"));
        }
        for argument in arguments {
            invocation.arg(argument.to_string());
        }
        invocation
    }
}
