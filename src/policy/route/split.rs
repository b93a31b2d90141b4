//! Routes of which some tenants and hosts are treated otherwise: a change that is tried on few first.
//! On which side of the split is this webhook?

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};

use super::Route;
use crate::config::problem::SourceSpan;
use crate::config::{self, ConnectPolicy, Problem};
use crate::names::{Host, RouteName, TenantName};

/// Hundredths of a percent that make a whole.
const SHARE_TOTAL: u64 = 10_000;

/// The two sides, as records and metrics call them.
pub(super) const MAIN: &str = "main";
pub(super) const SPLIT: &str = "split";

#[derive(Clone)]
pub struct Split {
    /// Hundredths of a percent.
    pub(super) share: u32,
    /// The route as it is for them.
    pub(super) variant: Arc<Route>,
}

impl Split {
    pub fn percent(&self) -> f64 {
        f64::from(self.share) / 100.0
    }

    pub fn variant(&self) -> &Arc<Route> {
        &self.variant
    }
}

impl Route {
    /// It is what a route is for those on the other side of its split.
    pub fn is_split_variant(&self) -> bool {
        self.side == Some(SPLIT)
    }

    /// Where the tenant and host stand on this route, in percent: below the split's, they are on its other side.
    pub fn split_percentile(&self, tenant: Option<&TenantName>, host: &Host) -> f64 {
        split_position(&self.name, tenant, host) as f64 / 100.0
    }

    /// This route, or what it is for the tenant and host. The same in every process and release, so that a customer stays
    /// on one side; and whoever is in a small share is in every larger one.
    pub(super) fn variant_for<'r>(self: &'r Arc<Self>, tenant: Option<&TenantName>, host: &Host) -> &'r Arc<Self> {
        match &self.split {
            Some(split) if split_position(&self.name, tenant, host) < u64::from(split.share) => &split.variant,
            _ => self,
        }
    }
}

/// What the other side makes of tunnels. It opens none where the route opens none: that is not what is tried. Where it adds
/// to webhooks what cannot be added inside of tunnels, it opens none either; but of a tunnel nobody knows the path, so the
/// table asks a route of some paths once, for both of its sides.
pub(super) fn variant_connect(
    written: &config::Route,
    route: ConnectPolicy,
    other: ConnectPolicy,
    place: SourceSpan,
    problems: &mut Vec<Problem>,
) -> ConnectPolicy {
    if (route, other) == (ConnectPolicy::Tunnel, ConnectPolicy::Refuse) && !written.paths.is_empty() {
        let message = "tunnels to these hosts would pass by what this split adds";
        let help = "write connect = \"refuse\" at the route: none for any tenant; or \"tunnel\": they may pass it by";
        problems.push(Problem::at(place, message).help(help));
    }
    if route == ConnectPolicy::Refuse { route } else { other }
}

/// Where in the whole a tenant and host stand, on this route: other ones come first on another.
fn split_position(route: &RouteName, tenant: Option<&TenantName>, host: &Host) -> u64 {
    let mut context = Context::new(&SHA256);
    for part in [route.as_str(), tenant.map_or("", TenantName::as_str), &host.to_string()] {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part.as_bytes());
    }
    let number = context.finish().as_ref().iter().take(8).fold(0, |sum: u64, byte| sum << 8 | u64::from(*byte));
    number % SHARE_TOTAL
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn split_share_is_exact_and_members_stay_when_it_grows() {
        let (route, host) = (RouteName::new("r"), Host::Name("hooks.acme.example".into()));
        let places: Vec<u64> =
            (0..100_000).map(|n| split_position(&route, Some(&TenantName::new(format!("t{n}"))), &host)).collect();
        for share in [1, 100, 2_500, 9_999] {
            let found = places.iter().filter(|place| **place < share).count() as f64;
            let expected = share as f64 * 10.0;
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{share}: {found}");
        }
        // The same for ever: this is a promise to whoever is on one side.
        assert_eq!(&places[..3], &STABLE_POSITIONS);
        let other = RouteName::new("s");
        let moved =
            (0..1000).filter(|n| split_position(&other, Some(&TenantName::new(format!("t{n}"))), &host) != places[*n]);
        assert!(moved.count() > 990, "on another route others come first");
    }

    const STABLE_POSITIONS: [u64; 3] = [8708, 6007, 3535];
}
