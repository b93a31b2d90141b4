//! Rates, concurrency, bandwidth and the admission queue.

mod overload;
mod properties;
mod rates;
mod running;
