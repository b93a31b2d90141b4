//! The scripts that the store runs. Each works on the keys of one slot, and reads the server's clock.
//! Which function decides for the whole fleet?

use std::fmt::Display;
use std::sync::LazyLock;

use redis::{Script, ScriptInvocation};

/// A function of the store. The files `*.lua` state the arguments and the results.
pub struct StoreScript {
    script: LazyLock<Script>,
    /// The names that follow the first key in the last keys of the script. The slot of a cluster is the same.
    suffixes: &'static [&'static str],
}

macro_rules! scripts {
    ($($name:ident = $file:literal, $suffixes:expr;)*) => {
        $(pub static $name: StoreScript =
            StoreScript { script: LazyLock::new(|| Script::new(include_str!($file))), suffixes: &$suffixes };)*
    };
}

/// The scripts for which deliveries wait.
pub(super) const AWAITED: [&StoreScript; 3] = [&CLAIM, &TAKE_TOKENS, &LEASE_PERMITS];

scripts! {
    ANNOUNCE = "announce.lua", ["announcements", "state", "lost", "lost:announcements"];
    READ_ANNOUNCEMENTS = "read_announcements.lua", ["announcements", "lost", "lost:announcements"];
    FORGET_INSTANCE = "forget_instance.lua", ["lost", "lost:announcements"];
    LIVE_INSTANCES = "live_instances.lua", ["announcements"];
    ASSIGN = "assign.lua", ["state"];
    CLAIM = "claim.lua", [];
    TAKE_TOKENS = "take_tokens.lua", [];
    LEASE_PERMITS = "lease_permits.lua", [];
    SHARE_HINTS = "share_hints.lua", [];
    START_ROLLOUT = "start_rollout.lua", [];
    REPORT_ROLLOUT = "report_rollout.lua", [];
}

impl StoreScript {
    /// Returns the call that gives the script to a server. Without it, the first call of the script takes three round trips.
    pub(super) fn loading(&self) -> ScriptInvocation<'_> {
        self.script.prepare_invoke()
    }

    pub(super) fn invocation(&self, keys: &[&str], arguments: &[&(dyn Display + Sync)]) -> ScriptInvocation<'_> {
        let mut invocation = self.script.prepare_invoke();
        for key in keys {
            invocation.key(*key);
        }
        for suffix in self.suffixes {
            invocation.key(format!("{}:{suffix}", keys.first().copied().unwrap_or_default()));
        }
        for argument in arguments {
            invocation.arg(argument.to_string());
        }
        invocation
    }
}
