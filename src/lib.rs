//! outgate, layer by layer. A module imports only from lower layers, and its own.
//! Which module performs each step of a webhook's life?
//!
//! | layer | module | what it does |
//! | --- | --- | --- |
//! | 7 | [`app`], [`reload`], [`cli`] | assembles, signals, systemd; one file a command |
//! | 6 | [`server`] | accepts, speaks HTTP to clients |
//! | 5 | [`delivery`] | **the story**: the life of one webhook |
//! | 4 | [`state`] | what outlives a delivery: active configuration, limits, connections, records, metrics |
//! | 3 | [`net`] | touches the network: listen, resolve, dial, TLS, HTTP to targets |
//! | 2 | [`policy`] | pure decisions: identify, route, admit, guard, egress, trust, sign |
//! | 2 | [`history`] | configurations that were adopted, and putting one back |
//! | 1 | [`config`] | the text as written; the only code that opens configuration files |
//! | 0 | [`names`], [`host`], [`lru`], [`single_flight`] | shared types, a bounded cache, one flight for many callers |
//!
//! The steps of a webhook, in the order of `delivery::deliver`: identify the client, find the route, admit the delivery
//! under the limits, read the body, resolve the name, check every address with the guard, choose the egress address,
//! connect and verify, sign, forward. The record is written when the delivery ends, however it ends.

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
pub mod single_flight;
pub mod state;
pub mod sysexits;
pub mod upkeep;
