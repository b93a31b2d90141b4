//! Rates, concurrency, bandwidth and the admission queue.

mod laws;
mod live;
mod overload;
mod rates;
