//! HTTP/2 with clients and with targets.

mod clients;
mod hostile_clients;
mod malformed;
mod origins;
mod resets;
mod responses;
mod returned_requests;
mod shared_connections;
mod targets;
mod tunnels;
