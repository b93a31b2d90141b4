//! outgate, floor by floor. A room imports only from the floors below it.
//! Where does each step of a webhook's life stand?
//!
//! | floor | room | what it does |
//! | --- | --- | --- |
//! | 7 | [`app`], [`reload`], [`cli`] | assembles, signals, systemd; one file a command |
//! | 6 | [`server`] | accepts, speaks HTTP to clients |
//! | 5 | [`delivery`] | **the story**: the life of one webhook |
//! | 4 | [`state`] | what outlives a delivery: active configuration, limits, connections, records, metrics |
//! | 3 | [`net`] | touches the network: listen, resolve, dial, TLS, HTTP to targets |
//! | 2 | [`policy`] | pure decisions: identify, route, admit, guard, egress, trust, sign |
//! | 2 | [`history`] | configurations that were adopted, and putting one back |
//! | 1 | [`config`] | the text as written; the only code that opens configuration files |
//! | 0 | [`names`], [`host`] | shared nouns |
//!
//! The life of a webhook, in the order of `delivery::relay`: *identify* the client, find its *route*, *admit* it under
//! the limits, *take in* the body, *resolve* the name and let the *guard* judge every answer, choose the *egress*
//! address, *connect* and verify, *sign*, *forward*, and *record* when it is over, however it ends.

pub mod app;
pub mod cli;
pub mod config;
pub mod delivery;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod history;
pub mod host;
pub mod lru;
pub mod names;
pub mod net;
pub mod policy;
pub mod reload;
pub mod server;
pub mod state;
pub mod sysexits;
pub mod upkeep;
