//! Decisions of a whole plan, which is compiled from the text of a configuration.
//! What does a plan say of its addresses, its limits and its routes?

use super::fixture::{day, plan};
use super::*;

#[test]
fn plan_has_the_source_addresses_of_its_pools_and_what_targets_see() {
    let plan = plan(
        "[egress.other]\nranges = [\"198.51.100.0/30\", { cidr = \"198.51.100.8/30\", from = 1970-05-01T00:00:00Z }]\n\
         [server]\nallow_anonymous = true\n",
    );
    for (address, now, has_source, seen_as) in [
        ("192.0.2.1", 100, true, "203.0.113.1"),
        ("198.51.100.3", 100, true, "198.51.100.3"),
        ("198.51.100.4", 100, false, "198.51.100.4"),
        ("198.51.100.8", 100, false, "198.51.100.8"),
        ("198.51.100.8", 120, true, "198.51.100.8"),
    ] {
        let ip = address.parse().unwrap();
        assert_eq!(
            (plan.has_source(ip, day(now)), plan.seen_as(ip, day(now)).to_string()),
            (has_source, seen_as.to_owned())
        );
    }
}

#[test]
fn plan_permits_half_of_the_connections_to_one_address_and_a_thousand_at_least() {
    for (server, expected) in [
        ("max_connections = 20000", 10_000),
        ("max_connections = 2002", 1001),
        ("max_connections = 2000", 1000),
        ("max_connections = 1000", 1000),
        ("max_connections = 20000\nmax_connections_per_ip = 7", 7),
    ] {
        let plan = plan(&format!("[server]\nallow_anonymous = true\n{server}\n"));
        assert_eq!(plan.connections_per_ip(), expected, "{server}");
    }
}

#[test]
fn plan_has_the_longest_time_and_the_largest_body_of_its_routes() {
    let plan = plan(
        "[server]\nallow_anonymous = true\n[[routes]]\nname = \"a\"\nhosts = [\"a.example\"]\nbody_max = \"3MiB\"\n\
         timeouts = { total = \"11m\", tunnel = \"1m\" }\n[[routes]]\nname = \"b\"\nhosts = [\"b.example\"]\n\
         body_max = \"2MiB\"\ntimeouts = { total = \"1m\", tunnel = \"12m\" }\n",
    );
    assert_eq!(plan.routes.max_duration(), Duration::from_secs(720));
    assert_eq!(plan.routes.body_max(), 3 << 20);
}

#[test]
fn pool_fails_over_unless_its_configuration_says_else() {
    let plan =
        plan("[egress.fixed]\nranges = [\"198.51.100.0/30\"]\nfailover = false\n[server]\nallow_anonymous = true\n");
    assert_eq!(["default", "fixed"].map(|name| plan.pools[name].failover()), [true, false]);
}

#[test]
fn own_webhooks_have_routes_of_their_own() {
    let none = plan("[server]\nallow_anonymous = true\n");
    assert!(none.routes.alerts().is_none() && none.routes.notices().is_none());
    let plan = plan(
        "[server]\nallow_anonymous = true\n[alerts]\nwebhook = \"https://ops.platform.com:8443/outgate\"\n\
         [notices]\nwebhooks = [\"https://customer.com/ranges\"]\n",
    );
    assert!(plan.routes.alerts().is_some() && plan.routes.notices().is_some());
    let webhook = plan.alerts.webhook.as_ref().unwrap();
    assert_eq!((webhook.url.as_str(), &*webhook.route.ports), ("https://ops.platform.com:8443/outgate", &[8443][..]));
    assert_eq!(webhook.route.response_max, 64 << 10, "its response is read into memory");
    assert_eq!(plan.notice_receivers[0].url, "https://customer.com/ranges");
}
