//! Certificates of targets, and certificates that outgate issues.

mod ca;
mod certificates;
mod check;
mod policies;
mod records;
mod sessions;
