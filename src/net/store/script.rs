//! The scripts that the store runs. Each works on one key, and reads the server's clock.
//! Which function decides for the whole fleet?

use std::fmt::Display;
use std::sync::LazyLock;

use redis::{Script, ScriptInvocation};

/// A function of the store. The files `*.lua` state the arguments and the results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreScript {
    Announce,
}

static ANNOUNCE: LazyLock<Script> = LazyLock::new(|| Script::new(include_str!("announce.lua")));

impl StoreScript {
    pub(super) fn invocation(self, key: &str, arguments: &[&(dyn Display + Sync)]) -> ScriptInvocation<'static> {
        let script: &'static Script = match self {
            Self::Announce => &ANNOUNCE,
        };
        let mut invocation = script.key(key);
        for argument in arguments {
            invocation.arg(argument.to_string());
        }
        invocation
    }
}
