//! The scripts that the store runs. Each works on one key, and reads the server's clock.
//! Which function decides for the whole fleet?

use std::fmt::Display;
use std::sync::LazyLock;

use redis::{Script, ScriptInvocation};

/// A function of the store. The files `*.lua` state the arguments and the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreScript {
    Announce,
    TakeTokens,
    LeasePermits,
}

static TAKE_TOKENS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("take_tokens.lua")));
static LEASE_PERMITS: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("lease_permits.lua")));
static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("announce.lua")));

impl StoreScript {
    pub(super) fn invocation(self, key: &str, arguments: &[&(dyn Display + Sync)]) -> ScriptInvocation<'static> {
        let script: &'static Script = match self {
            Self::Announce => &ANNOUNCE,
            Self::TakeTokens => &TAKE_TOKENS,
            Self::LeasePermits => &LEASE_PERMITS,
        };
        let mut invocation = script.key(key);
        for argument in arguments {
            invocation.arg(argument.to_string());
        }
        invocation
    }
}
