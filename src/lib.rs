//! The library of outgate, in layers. A module imports only from lower layers and from itself.
//! Which module performs each step of a delivery?
//!
//! | layer | module | what it does |
//! | --- | --- | --- |
//! | 7 | [`app`], [`reload`], [`sandbox`], [`upkeep`], [`cli`] | assembles the process; signals, reloads, restrictions, maintenance; one file per command |
//! | 6 | [`server`] | accepts connections, and speaks HTTP with clients |
//! | 5 | [`delivery`] | **the story**: the life of one webhook |
//! | 4 | [`state`] | holds what outlives a delivery: active configuration, limits, connections, records, metrics |
//! | 3 | [`net`] | uses the network: listen, resolve, dial, TLS, HTTP to targets |
//! | 2 | [`policy`] | makes pure decisions: identify, route, admit, guard, egress, trust, sign |
//! | 2 | [`history`] | stores adopted configurations, and restores one |
//! | 2 | [`audit`] | writes and verifies the audit log: a chain of changes and security events |
//! | 2 | [`capture_store`] | stores, lists and erases sealed captures |
//! | 1 | [`config`] | represents the configuration as written; the only code that opens configuration files |
//! | 0 | [`names`], [`host`], [`http_message`], [`digest`], [`lru`], [`panics`], [`single_flight`] | shared types; HTTP messages; SHA-256; a bounded cache; containment of panics; one call for concurrent callers |
//!
//! The steps of a webhook, in the order of `delivery::deliver`: judge the request (client, tenant, route), check the
//! circuit breaker, acquire the permits of the limits and a place in flight, obtain the credential, read the body,
//! resolve the name, check every address with the guard, choose the egress address, connect and verify, sign, forward.
//! Each delivery writes a record when it ends, successful or not.

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests play clients, targets and operators"))]

pub mod app;
pub mod audit;
pub mod capture_store;
pub mod cli;
pub mod config;
pub mod delivery;
pub mod digest;
#[cfg(any(test, fuzzing))]
pub mod fuzz;
pub mod history;
pub mod host;
pub mod http_message;
pub mod lru;
pub mod names;
pub mod net;
pub mod panics;
pub mod policy;
pub mod reload;
pub mod sandbox;
pub mod server;
#[cfg(test)]
mod simulation;
pub mod single_flight;
pub mod state;
pub mod sysexits;
pub mod upkeep;
