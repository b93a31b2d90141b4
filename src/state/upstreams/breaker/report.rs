//! The circuits as a list, for operators.
//! Which targets does outgate leave alone, and until when?

use std::time::{Duration, Instant};

use super::key::CircuitScope;
use super::{CircuitBreakers, OwnedCircuit};
use crate::names::{ClientName, PoolName, RouteName, Target, TenantName};

/// One circuit.
#[derive(Debug)]
pub struct CircuitReport {
    pub target: Target,
    pub pool: PoolName,
    /// The route whose trial side of a split has a circuit of its own.
    pub trial: Option<RouteName>,
    /// The client and the tenant that the circuit is for; `None`: all.
    pub client: Option<(ClientName, Option<TenantName>)>,
    /// The time for which the circuit still refuses deliveries. Zero: the next delivery probes the target. `None`: the
    /// target failed recently, and the circuit is closed.
    pub retry_after: Option<Duration>,
}

impl CircuitBreakers {
    /// Returns the number of attempts that have no outcome yet.
    #[cfg(test)]
    pub fn attempt_count(&self) -> usize {
        let attempts = |shard: &super::CircuitShard| shard.values().map(|tracked| tracked.attempts).sum::<usize>();
        self.shards.iter().map(|shard| attempts(&shard.lock())).sum()
    }

    /// Returns targets with an open circuit for all clients, and the pools from which outgate reaches them.
    pub fn unreachable_targets(&self, max: usize) -> Vec<(Target, PoolName)> {
        let mut found = Vec::new();
        for shard in self.shards.iter().take_while(|_| !self.count.is_zero()) {
            let shard = shard.lock();
            let open = shard.iter().filter(|(upstream, tracked)| {
                let is_open = |((_, scope), owned): (&(_, CircuitScope), &OwnedCircuit)| {
                    *scope == CircuitScope::AllClients && owned.circuit.open_period().is_some()
                };
                upstream.trial.is_none() && tracked.circuits.iter().any(is_open)
            });
            let left = max - found.len();
            found.extend(open.take(left).map(|(upstream, _)| (upstream.target.clone(), upstream.pool.clone())));
        }
        found
    }

    /// Returns every circuit, those that stay open for longest first.
    pub fn report(&self, now: Instant) -> Vec<CircuitReport> {
        let mut reports = Vec::new();
        for shard in &self.shards {
            for (upstream, tracked) in shard.lock().iter() {
                reports.extend(tracked.circuits.iter().map(|((_, scope), owned)| CircuitReport {
                    target: upstream.target.clone(),
                    pool: upstream.pool.clone(),
                    trial: upstream.trial.clone(),
                    client: match scope {
                        CircuitScope::AllClients => None,
                        CircuitScope::Client(client, tenant) => Some((client.clone(), tenant.clone())),
                    },
                    retry_after: owned.circuit.open_period().map(|(_, until)| until.saturating_duration_since(now)),
                }));
            }
        }
        reports.sort_by_key(|report| std::cmp::Reverse(report.retry_after));
        reports
    }
}
