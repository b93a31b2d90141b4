//! The conversion of every error into a refusal: of the client's side, of the target's side, and of tunnels.
//! Which refusal does the client get for this error?

mod client;
mod target;
mod tunnel;

pub(super) use client::{ambiguous_path, too_many_tunnels, unsigned};
pub(super) use target::{head_too_large, malformed_response, map_exchange_error};
pub use tunnel::InspectError;
