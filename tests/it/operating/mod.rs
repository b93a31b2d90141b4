//! What an operator does and reads while the proxy runs.

mod admin;
mod control;
mod first_request;
mod handover;
mod history;
mod lifecycle;
mod log;
mod metrics;
mod output;
mod record_log;
mod records;
mod reload;
mod reload_live;
mod slow_disk;
mod systemd;
mod workers;
