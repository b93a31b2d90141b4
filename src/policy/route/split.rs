//! Splits of a route: a variant that applies to some tenants and hosts, to try a change on a small share first.
//! Which side of the split does this webhook take?

use std::sync::Arc;

use super::Route;
use crate::config::problem::SourceSpan;
use crate::config::{self, ConnectPolicy, Problem};
use crate::digest::{Fingerprint, leading_number};
use crate::names::{Host, RouteName, TenantName};

/// The whole in hundredths of a percent.
const SHARE_TOTAL: u64 = 10_000;

/// The names of the two sides in records and metrics.
pub(super) const MAIN: &str = "main";
pub(super) const SPLIT: &str = "split";

#[derive(Clone)]
pub struct Split {
    /// The share of the variant in hundredths of a percent.
    pub(super) share: u32,
    /// The route for this share.
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
    /// Returns whether this is the variant of a split.
    pub fn is_split_variant(&self) -> bool {
        self.side == Some(SPLIT)
    }

    /// Returns the position of a tenant and host in percent. Below the share of the split, the variant applies.
    pub fn split_percentile(&self, tenant: Option<&TenantName>, host: &Host) -> f64 {
        split_position(&self.name, tenant, host) as f64 / 100.0
    }

    /// Returns this route or its variant for the tenant and host. The choice is equal in every process and release. A
    /// tenant in a small share is also in every larger one.
    pub(super) fn variant_for<'r>(self: &'r Arc<Self>, tenant: Option<&TenantName>, host: &Host) -> &'r Arc<Self> {
        match &self.split {
            Some(split) if split_position(&self.name, tenant, host) < u64::from(split.share) => &split.variant,
            _ => self,
        }
    }
}

/// Returns the variant's tunnel policy. The variant permits no tunnels if the route permits none. It permits none
/// either if it signs or has a credential, unless configured.
///
/// The path of a tunnel is unknown, so the table asks a route with paths once for both sides. So a route with paths
/// must state its policy if only the variant signs or has a credential.
pub(super) fn variant_connect(
    written: &config::Route,
    route: ConnectPolicy,
    other: ConnectPolicy,
    place: SourceSpan,
    problems: &mut Vec<Problem>,
) -> ConnectPolicy {
    if (route, other) == (ConnectPolicy::Tunnel, ConnectPolicy::Refuse) && !written.paths.is_empty() {
        let message = "tunnels to these hosts would bypass the signature or credential of this split";
        let help = "write connect = \"refuse\" at the route to permit no tunnels, or \"tunnel\" to permit the bypass";
        problems.push(Problem::at(place, message).help(help));
    }
    if route == ConnectPolicy::Refuse { route } else { other }
}

/// Returns the position of a tenant and host within the whole. Positions differ between routes.
fn split_position(route: &RouteName, tenant: Option<&TenantName>, host: &Host) -> u64 {
    let parts = [route.as_str(), tenant.map_or("", TenantName::as_str), &host.to_string()];
    leading_number(&Fingerprint::of_parts(parts.map(str::as_bytes))) % SHARE_TOTAL
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use jiff::Timestamp;

    use super::*;
    use crate::names::ClientName;
    use crate::policy;

    #[test]
    fn split_share_is_exact_and_members_stay_when_it_grows() {
        let (route, host) = (RouteName::new("r"), Host::Name("hooks.acme.example".into()));
        let positions: Vec<u64> =
            (0..100_000).map(|n| split_position(&route, Some(&TenantName::new(format!("t{n}"))), &host)).collect();
        for share in [1, 100, 2_500, 9_999] {
            let found = positions.iter().filter(|place| **place < share).count() as f64;
            let expected = share as f64 * 10.0;
            assert!((found - expected).abs() < 5.0 * expected.sqrt(), "{share}: {found}");
        }
        // These positions must never change: tenants rely on their side of a split.
        assert_eq!(&positions[..3], &STABLE_POSITIONS);
        let other = RouteName::new("s");
        let moved = (0..1000)
            .filter(|n| split_position(&other, Some(&TenantName::new(format!("t{n}"))), &host) != positions[*n]);
        assert!(moved.count() > 990, "on another route others come first");
    }

    /// The tenant `t0` has the position 87.08 % on the route `r`.
    #[test]
    fn split_variant_serves_the_tenants_below_its_share() {
        let host = Host::Name("hooks.acme.example".into());
        for (percent, is_variant) in [("87.07", false), ("87.08", false), ("87.09", true), ("100", true)] {
            let text = format!(
                "[server]\nallow_anonymous = true\n[egress.default]\nranges = [\"192.0.2.0/28\"]\n[[routes]]\nname = \"r\"\n\
                 hosts = [\"hooks.acme.example\"]\nsplit = {{ percent = {percent}, timeouts = {{ connect = \"2s\" }} }}\n"
            );
            let loaded = config::parse(&text, Path::new("/nowhere/config.toml")).unwrap();
            let (plan, _) = policy::compile(&loaded.config, Timestamp::UNIX_EPOCH).unwrap_or_else(|_| panic!("{text}"));
            let client = ClientName::new("a");
            let selected = plan.routes.select(&client, Some(&TenantName::new("t0")), &host, "/").unwrap().unwrap();
            assert_eq!(selected.is_split_variant(), is_variant, "{percent}");
            let (written, tunnel) =
                plan.routes.select_for_tunnel(&client, Some(&TenantName::new("t0")), (&host, 443)).unwrap();
            assert_eq!((written.is_split_variant(), tunnel.is_split_variant()), (false, is_variant), "{percent}");
            assert_eq!(written.split_percentile(Some(&TenantName::new("t0")), &host).to_string(), "87.08");
            assert_eq!(written.split.as_ref().unwrap().percent().to_string(), percent);
        }
    }

    const STABLE_POSITIONS: [u64; 3] = [8708, 6007, 3535];
}
