//! Reads a route's `metrics`.
//! In which series are the deliveries of a route counted?

use super::Located;
use super::reader::{Reader, Value};

/// The series of a route's deliveries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RouteMetrics {
    /// One set for all routes that do not ask for their own.
    Shared,
    /// A set of its own, with the name of the route as a label.
    Own,
}

pub(super) fn read(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Located<RouteMetrics>> {
    reader.parse_choice(value, &[("shared", RouteMetrics::Shared), ("own", RouteMetrics::Own)])
}
