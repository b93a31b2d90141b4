//! The weight of an instance behind a load balancer, from what the instance has left.
//! Which share of its usual traffic should an instance get?

/// The share of a bound up to which an instance gets all of its traffic.
const FULL_WEIGHT_UNTIL: f64 = 0.5;
/// The weight below which other instances are to be preferred.
const DEGRADED_BELOW: u8 = 50;

/// A bound of the process and its use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    pub used: u64,
    /// Zero: the bound is unknown.
    pub max: u64,
}

/// The facts of which the weight is made.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub is_draining: bool,
    /// Whether the routes are in a bundle of the fleet that this host has not adopted yet.
    pub lacks_bundle: bool,
    /// Deliveries in flight, and those that wait for a place, of `server.max_deliveries`.
    pub deliveries: Usage,
    /// Open tunnels, of those that the process can hold.
    pub tunnels: Usage,
    /// Bytes of signed bodies, of the memory that they may take.
    pub memory: Usage,
    /// Ports that the fullest source address uses towards its fullest target, of the ports of the host.
    pub ports: Usage,
    /// The usable share, from 0 to 1, of the pool that lacks most of its addresses.
    pub addresses: f64,
}

/// The fact that lowers the weight most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadFactor {
    Draining,
    Bundle,
    Addresses,
    Deliveries,
    Tunnels,
    Memory,
    Ports,
}

/// The share of its usual traffic that an instance should get.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Weight {
    /// A percentage, 100 at most. Zero: no new traffic.
    pub percent: u8,
    /// `None`: the weight is 100.
    pub limited_by: Option<LoadFactor>,
}

impl Usage {
    pub fn new(used: usize, max: usize) -> Self {
        Self { used: used as u64, max: max as u64 }
    }

    pub fn share(self) -> f64 {
        if self.max == 0 { 0.0 } else { self.used as f64 / self.max as f64 }
    }

    /// Returns the share of traffic that the bound permits: all of it up to [`FULL_WEIGHT_UNTIL`], and less in proportion to
    /// what is left.
    fn headroom(self) -> f64 {
        ((1.0 - self.share()) / (1.0 - FULL_WEIGHT_UNTIL)).clamp(0.0, 1.0)
    }
}

impl LoadFactor {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Draining => "draining",
            Self::Bundle => "bundle",
            Self::Addresses => "addresses",
            Self::Deliveries => "deliveries",
            Self::Tunnels => "tunnels",
            Self::Memory => "memory",
            Self::Ports => "ports",
        }
    }
}

impl Load {
    /// Returns the bounds by what they bound.
    pub fn usages(&self) -> [(LoadFactor, Usage); 4] {
        [
            (LoadFactor::Deliveries, self.deliveries),
            (LoadFactor::Tunnels, self.tunnels),
            (LoadFactor::Memory, self.memory),
            (LoadFactor::Ports, self.ports),
        ]
    }

    /// Computes the weight: 100 times the share of the addresses that are left, times the least headroom of a bound.
    ///
    /// Only an instance that drains, that waits for its first bundle, or that has no address of a pool, has the weight 0: it
    /// refuses webhooks. Load alone lowers the weight to 1 at least, because all instances may be loaded at once.
    pub fn weight(&self) -> Weight {
        let zero = |factor| Weight { percent: 0, limited_by: Some(factor) };
        if self.is_draining {
            return zero(LoadFactor::Draining);
        }
        if self.lacks_bundle {
            return zero(LoadFactor::Bundle);
        }
        if self.addresses <= 0.0 {
            return zero(LoadFactor::Addresses);
        }
        let bounds = self.usages().map(|(factor, usage)| (factor, usage.headroom()));
        let least = bounds.into_iter().reduce(|least, next| if next.1 < least.1 { next } else { least });
        let (factor, headroom) = least.unwrap_or((LoadFactor::Deliveries, 1.0));
        let factor = if self.addresses < headroom { LoadFactor::Addresses } else { factor };
        let percent = (100.0 * self.addresses * headroom).round().clamp(1.0, 100.0) as u8;
        Weight { percent, limited_by: (percent < 100).then_some(factor) }
    }
}

impl Weight {
    /// Returns whether a load balancer should prefer other instances.
    pub fn is_degraded(self) -> bool {
        self.percent < DEGRADED_BELOW
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn idle() -> Load {
        let bound = Usage { used: 0, max: 1000 };
        Load {
            is_draining: false,
            lacks_bundle: false,
            deliveries: bound,
            tunnels: bound,
            memory: bound,
            ports: bound,
            addresses: 1.0,
        }
    }

    /// The first bound in the order of [`Load::usages`] is named if several have as much left.
    #[test]
    fn weight_names_one_of_equal_factors() {
        let half = Usage { used: 750, max: 1000 };
        let all = Load { deliveries: half, tunnels: half, memory: half, ports: half, ..idle() };
        assert_eq!(all.weight(), Weight { percent: 50, limited_by: Some(LoadFactor::Deliveries) });
        let memory = Load { memory: half, ports: half, ..idle() };
        assert_eq!(memory.weight(), Weight { percent: 50, limited_by: Some(LoadFactor::Memory) });
        let addresses = |addresses| Load { addresses, ..memory }.weight();
        assert_eq!(addresses(0.5), Weight { percent: 25, limited_by: Some(LoadFactor::Memory) });
        assert_eq!(addresses(0.49), Weight { percent: 25, limited_by: Some(LoadFactor::Addresses) });
    }

    #[test]
    fn weight_falls_with_the_bound_that_has_least_left() {
        let used = |used| Usage { used, max: 1000 };
        for (deliveries, memory, expected, limited_by) in [
            (0, 0, 100, None),
            (500, 500, 100, None),
            (600, 0, 80, Some(LoadFactor::Deliveries)),
            (600, 750, 50, Some(LoadFactor::Memory)),
            (900, 0, 20, Some(LoadFactor::Deliveries)),
            (1000, 0, 1, Some(LoadFactor::Deliveries)),
            (2000, 0, 1, Some(LoadFactor::Deliveries)),
        ] {
            let load = Load { deliveries: used(deliveries), memory: used(memory), ..idle() };
            assert_eq!(load.weight(), Weight { percent: expected, limited_by }, "{deliveries} {memory}");
        }
        let weight = |load: Load| (load.weight().percent, load.weight().limited_by.map(LoadFactor::as_str));
        assert_eq!(weight(Load { ports: used(950), ..idle() }), (10, Some("ports")), "a twentieth is left");
        assert_eq!(weight(Load { tunnels: used(875), ..idle() }), (25, Some("tunnels")));
        assert_eq!(weight(Load { ports: Usage { used: 7, max: 0 }, ..idle() }), (100, None), "an unknown bound");
    }

    #[test]
    fn weight_falls_with_lost_addresses_and_is_zero_without_any() {
        let of_addresses = |addresses| {
            let weight = Load { addresses, ..idle() }.weight();
            (weight.percent, weight.limited_by)
        };
        assert_eq!(of_addresses(0.75), (75, Some(LoadFactor::Addresses)));
        assert_eq!(of_addresses(1e-19), (1, Some(LoadFactor::Addresses)), "one address of a /64 still sends");
        assert_eq!(of_addresses(0.0), (0, Some(LoadFactor::Addresses)));
        let both = Load { addresses: 0.5, deliveries: Usage { used: 750, max: 1000 }, ..idle() };
        assert_eq!(both.weight().percent, 25, "the two shares multiply");
        let draining = Load { is_draining: true, ..both };
        assert_eq!(draining.weight(), Weight { percent: 0, limited_by: Some(LoadFactor::Draining) });
        let lacking = Load { lacks_bundle: true, ..both };
        assert_eq!(lacking.weight(), Weight { percent: 0, limited_by: Some(LoadFactor::Bundle) });
    }

    #[test]
    fn weight_below_50_is_degraded() {
        let weight = |used| Load { memory: Usage { used, max: 100 }, ..idle() }.weight();
        assert!(!weight(75).is_degraded() && weight(76).is_degraded());
    }

    proptest! {
        #[test]
        fn more_load_never_raises_the_weight(
            used in prop::array::uniform4(0_u64..1500), more in 0_u64..500, at in 0_usize..4, usable in 0_u8..=16,
        ) {
            let load = |used: [u64; 4]| {
                let [deliveries, tunnels, memory, ports] = used.map(|used| Usage { used, max: 1000 });
                Load { deliveries, tunnels, memory, ports, addresses: f64::from(usable) / 16.0, ..idle() }
            };
            let mut higher = used;
            higher[at] += more;
            let (before, after) = (load(used).weight().percent, load(higher).weight().percent);
            prop_assert!(after <= before && before <= 100);
            prop_assert_eq!(after == 0, usable == 0, "load alone never takes an instance out of service");
        }
    }
}
