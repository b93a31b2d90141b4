//! Requests of clients: their forms, their uploads, and the refusals that clients get.

mod clients;
mod clients_refused;
mod clients_shown;
mod differential;
mod early_responses;
mod fields;
mod hang_ups;
mod http1;
mod paths;
mod refused_uploads;
mod responses;
mod send;
