//! The count of target networks that time out for one source address.
//! Do enough independent networks time out to blame the source, and could one party alone cause that?

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::names::TenantName;

/// The number of target networks that must time out before a source is ejected.
pub const NETWORKS_MIN: usize = 4;
/// The maximum number of networks that count for one tenant if several tenants deliver. So no tenant can eject a source
/// that others use.
const NETWORKS_PER_TENANT_MAX: usize = NETWORKS_MIN / 2;

/// The prefix length of a target network. One party may own all addresses within it.
const NETWORK_V4: u8 = 24;
const NETWORK_V6: u8 = 48;

/// A target network that timed out for a source, as observed by the deliveries of one tenant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TimeoutObservation {
    network: IpNet,
    /// `None` for deliveries without a tenant.
    tenant: Option<TenantName>,
}

impl TimeoutObservation {
    pub fn new(target: IpAddr, tenant: Option<TenantName>) -> Self {
        let target = target.to_canonical();
        let bits = if target.is_ipv4() { NETWORK_V4 } else { NETWORK_V6 };
        let network = IpNet::new(target, bits).map_or(target.into(), |net| net.trunc());
        Self { network, tenant }
    }
}

/// Returns the number of networks that count. Targets within one network count once. A network that several tenants
/// observed counts for the tenant that has used least of its allowance.
pub fn count_networks<'w>(
    observations: impl IntoIterator<Item = &'w TimeoutObservation>,
    has_several_tenants: bool,
) -> usize {
    let mut tenants: BTreeMap<IpNet, BTreeSet<Option<&TenantName>>> = BTreeMap::new();
    for observation in observations {
        tenants.entry(observation.network).or_default().insert(observation.tenant.as_ref());
    }
    if !has_several_tenants {
        return tenants.len();
    }
    // Networks that the fewest tenants observed come first.
    let mut tenants: Vec<_> = tenants.into_values().collect();
    tenants.sort_by_key(BTreeSet::len);
    let mut used: HashMap<Option<&TenantName>, usize> = HashMap::new();
    let counts = tenants.iter().filter(|tenants| {
        let least = tenants.iter().min_by_key(|tenant| used.get(*tenant).copied().unwrap_or(0));
        let Some(count) = least.map(|tenant| used.entry(*tenant).or_default()) else { return false };
        *count += 1;
        *count <= NETWORKS_PER_TENANT_MAX
    });
    counts.count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(observations: &[(&str, &str)], has_several_tenants: bool) -> usize {
        let tenant = |name: &str| (!name.is_empty()).then(|| TenantName::new(name));
        let observations: Vec<_> =
            observations.iter().map(|(ip, name)| TimeoutObservation::new(ip.parse().unwrap(), tenant(name))).collect();
        count_networks(&observations, has_several_tenants)
    }

    #[test]
    fn source_ejection_counts_hosts_by_network_and_tenant() {
        let one = [("192.0.2.1", "t"), ("192.0.2.2", "t"), ("192.0.2.200", "u"), ("::ffff:192.0.2.3", "v")];
        assert_eq!((count(&one, false), count(&one, true)), (1, 1), "all are in one /24");
        let v6 = [("2001:db8:0:1::1", "t"), ("2001:db8:0:2::1", "u"), ("2001:db8:1::1", "u")];
        assert_eq!((count(&v6, false), count(&v6, true)), (2, 2), "a /48 is one");
        let four = ["198.51.100.1", "203.0.113.1", "192.0.2.1", "192.88.99.1"];
        assert_eq!(count(&four.map(|ip| (ip, "")), false), 4);
        assert_eq!(count(&four.map(|ip| (ip, "t")), true), 2, "one tenant of several");
        let [a, b, c, d] = four;
        assert_eq!(count(&[(a, "t"), (b, "t"), (c, "u"), (d, "u")], true), 4);
        assert_eq!(count(&[(a, "t"), (b, "t"), (c, "t"), (d, "u")], true), 3);
        assert_eq!(count(&[(a, "t"), (b, "t"), (c, "t"), (c, "u"), (d, "t"), (d, "u")], true), 4, "by either");
    }
}
