//! Certificates: those of targets, and those that outgate makes.

mod ca;
mod certificates;
mod check;
mod policies;
