//! The reason why the fleet does not take a change.
//! Does it fail because of the store, the bucket, the range, or another operator?

use std::{fmt, io};

use crate::net::store::StoreError;
use crate::policy::fleet::assignments::RangeError;

/// A change of what the instances have in common could not be made.
#[derive(Debug)]
pub enum FleetError {
    Store(StoreError),
    /// The bucket of the bundles.
    Bucket(io::Error),
    Range(RangeError),
    /// Another operator has made a change at the same time. The text says which, and what to do.
    Conflict(&'static str),
}

impl From<StoreError> for FleetError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl fmt::Display for FleetError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Store(error) => write!(f, "the store of the fleet is away: {error}"),
            Self::Bucket(error) => write!(f, "the bucket of the bundles fails: {error}"),
            Self::Range(error) => error.fmt(f),
            Self::Conflict(what) => f.write_str(what),
        }
    }
}
