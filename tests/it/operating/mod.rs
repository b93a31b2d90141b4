//! Operation of a running proxy: commands, logs, records, metrics, reloads and restarts.

mod accounting;
mod admin;
mod control;
mod deliveries;
mod exercise;
mod first_request;
mod handover;
mod history;
mod lifecycle;
mod log;
mod log_rotation;
mod log_sampling;
mod metric_formats;
mod metrics;
mod output;
mod record_log;
mod records;
mod redaction;
mod reload;
mod reload_live;
mod slow_disk;
mod systemd;
mod workers;
