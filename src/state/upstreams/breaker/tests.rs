//! Circuits of several clients in a table that is full.
//! Whose circuit makes room?

use super::*;
use crate::config;
use crate::names::{Host, PoolName, Scheme, Target, TenantName};

fn key(client: &str, target: &str, tenant: Option<&str>) -> BreakerKey {
    let target = Target { scheme: Scheme::Https, host: Host::Name(target.into()), port: 443 };
    BreakerKey {
        upstream: Upstream { target, pool: PoolName::new("default"), trial: None },
        terms: RouteRequirements { timeouts: [Duration::from_secs(1); 6], trust: [0; 32] },
        client: ClientName::new(client),
        tenant: tenant.map(TenantName::new),
    }
}

fn fail(circuits: &Arc<CircuitBreakers>, key: &BreakerKey, failure: UpstreamFailure) {
    let second = Duration::from_secs(1);
    let config = config::Circuit { failures: 1, window: 60 * second, open: 60 * second, open_max: 60 * second };
    let attempt = circuits.begin(key.clone(), BreakerConfig::compile(&config).unwrap());
    if let Ok(attempt) = attempt {
        attempt.failed(failure, "connect_refused");
    }
}

#[test]
fn circuits_of_one_client_do_not_evict_those_of_others() {
    let circuits = Arc::new(CircuitBreakers::with_room_for(4));
    let quiet = key("quiet", "down.example", None);
    fail(&circuits, &quiet, UpstreamFailure::Unreachable);
    for number in 0..20 {
        fail(&circuits, &key("busy", &format!("{number}.example"), None), UpstreamFailure::Unreachable);
    }
    for number in 0..20 {
        let tenant = number.to_string();
        fail(&circuits, &key("busy", "slow.example", Some(&tenant)), UpstreamFailure::NoResponse);
    }
    assert!(circuits.check(&quiet).is_err(), "the circuit of the other client is still open");
    assert!(circuits.check(&key("busy", "slow.example", Some("19"))).is_err(), "the newest circuit has room");
    assert!(circuits.check(&key("busy", "0.example", None)).is_ok(), "the oldest circuit of the client made room");
    assert_eq!((circuits.open(), circuits.count.load(Ordering::Relaxed), circuits.shares.lock().total()), (4, 4, 4));
}

#[test]
fn circuits_that_close_give_their_share_back() {
    let circuits = Arc::new(CircuitBreakers::with_room_for(4));
    for number in 0..3 {
        fail(&circuits, &key("client", &format!("{number}.example"), None), UpstreamFailure::Unreachable);
    }
    circuits.sweep(None);
    assert_eq!((circuits.count.load(Ordering::Relaxed), circuits.shares.lock().total()), (0, 0));
    assert!(circuits.shards.iter().all(|shard| shard.lock().is_empty()));
}
