//! Tests of compiled routes, and of the problem of each invalid one.
//! Does each mistake get its own message?

use std::time::Duration;

use super::{NamedTables, Routes};
use crate::config::{
    self, Authentication, Config, ConnectPolicy, Credential, Limit, LimitDimension, Located, PlaintextPolicy, Problem,
    Rate, Secret, SigningKey,
};
use crate::names::{ClientName, CredentialName, Host, KeyId, LimitName, SignerName, TenantName};
use crate::policy::fixture::{self, at, client, config, messages, route};
use crate::policy::{credential, egress, limits, sign, trust};

pub(super) fn compile(config: &Config) -> (Routes, Vec<Problem>) {
    let mut problems = vec![];
    let pools = egress::compile(config, jiff::Timestamp::UNIX_EPOCH, &mut vec![]);
    let trusts = trust::compile(config, &mut vec![]);
    let (signers, limits) = (sign::compile(config, None, &mut problems), limits::compile(config, &mut problems));
    let credentials = credential::compile(config, &mut problems);
    let tables =
        NamedTables { pools: &pools, trusts: &trusts, signers: &signers, credentials: &credentials, limits: &limits };
    let routes = Routes::compile(config, &tables, &mut problems);
    (routes, problems)
}

fn signer() -> Located<config::Signer> {
    let secret = Secret::new(sign::new_key("standard-webhooks", None).unwrap().as_bytes().to_vec());
    let key = SigningKey { id: KeyId::new("k"), secret: at(41, secret), from: None, until: None };
    at(40, config::Signer { keys: vec![at(43, key)], ..fixture::signer("standard-webhooks") })
}

pub(super) fn github() -> Located<config::Signer> {
    let key = SigningKey { id: KeyId::new("k"), secret: at(41, Secret::new(vec![b'x'; 32])), from: None, until: None };
    at(40, config::Signer { keys: vec![at(43, key)], ..fixture::signer("github") })
}

fn limit() -> Located<Limit> {
    let rate = at(51, Rate { count: 1, period: Duration::from_secs(1) });
    at(50, Limit { rate: Some(rate), per: vec![at(52, LimitDimension::Host)], ..Limit::default() })
}

/// Returns one route for `hooks.acme.example`, and one section of every kind that it may name.
pub(super) fn with_route(change: impl FnOnce(&mut config::Route)) -> Config {
    let mut config = config();
    let any_tenant = config::Client { tenants: vec![at(61, "*".into())], ..client() };
    config.clients.insert(ClientName::new("billing"), at(60, any_tenant));
    config.signers.insert(SignerName::new("platform"), signer());
    config.limits.insert(LimitName::new("per-host"), limit());
    let mut route = route(100, "acme", "hooks.acme.example");
    route.value.sign = vec![at(110, "platform".into())];
    route.value.limits = vec![at(111, "per-host".into())];
    change(&mut route.value);
    config.routes.push(route);
    config
}

#[test]
fn route_inherits_what_it_does_not_set() {
    let config = with_route(|route| {
        route.timeouts.response = Some(Duration::from_secs(30));
        route.tenants = vec![at(120, "acme".into())];
        route.ports = vec![at(121, 8443)];
        route.limits.push(at(122, "per-host".into()));
    });
    let (routes, problems) = compile(&config);
    assert!(problems.is_empty(), "{problems:?}");
    let host = Host::Name("hooks.acme.example".into());
    let route = routes.select(&ClientName::new("c"), Some(&TenantName::new("acme")), &host, "/").unwrap().unwrap();
    assert_eq!((route.pool.name().as_str(), route.trust.name.as_str()), ("default", "public"));
    assert_eq!((route.body_max, route.ports.as_slice()), (1 << 20, &[8443][..]));
    assert_eq!(route.response_max, 64 << 20);
    assert_eq!((route.signers.len(), route.limits.len()), (1, 1));
    assert_eq!([route.timeouts.response, route.timeouts.total].map(|time| time.as_secs()), [30, 1]);
}

#[test]
fn routes_compile_reports_each_problem() {
    type Change = fn(&mut config::Route);
    let table: &[(Change, &[&str])] = &[
        (|_| {}, &[]),
        (|r| r.hosts.clear(), &["the route \"acme\" matches no host"]),
        (|r| r.paths = vec![at(1, "in".into())], &["the path does not begin with \"/\""]),
        (|r| r.paths = vec![at(1, "/in?x".into())], &["no request has a path of this form"]),
        (|r| r.paths = vec![at(1, "/ä".into())], &["no request has a path of this form"]),
        (|r| r.clients = vec![at(1, "biling".into())], &["no client is named \"biling\""]),
        (|r| r.clients = vec![at(1, "anonymous".into())], &["no client is named \"anonymous\""]),
        (|r| r.trust = Some(at(1, "pubic".into())), &["no trust is named \"pubic\""]),
        (|r| r.sign.push(at(1, "platfrom".into())), &["no signer is named \"platfrom\""]),
        (|r| r.limits.push(at(1, "per_host".into())), &["no limit is named \"per_host\""]),
        (|r| r.sign.push(at(1, "platform".into())), &["the signers platform and platform write the same headers"]),
        (|r| r.ports = vec![at(1, 0)], &["0 is not a port"]),
        (|r| r.body_max = Some(at(1, 0)), &["a body_max of 0 refuses every body"]),
        (|r| r.body_max = Some(at(1, 64 << 20)), &[]),
        (|r| r.body_max = Some(at(1, (64 << 20) + 1)), &["outgate buffers signed bodies, up to 64 MiB each"]),
        (
            |r| r.plaintext.value = PlaintextPolicy::Allow,
            &["warning: outgate may send webhooks in plaintext, to targets whose identity is not verified"],
        ),
        (
            |r| r.egress = Some(at(1, "defualt".into())),
            &["no egress pool is named \"defualt\"", "warning: no route uses the egress pool default"],
        ),
        (|r| r.sign.clear(), &["warning: no route uses the signer platform"]),
        (|r| r.limits.clear(), &["warning: no route uses the limit per-host"]),
    ];
    for (change, expected) in table {
        assert_eq!(messages(&compile(&with_route(change)).1), *expected);
    }
}

#[test]
fn route_with_a_credential_refuses_tunnels_by_default() {
    for (credential, connect, expected) in [
        (None, None, ConnectPolicy::Tunnel),
        (Some("key"), None, ConnectPolicy::Refuse),
        (Some("key"), Some(ConnectPolicy::Tunnel), ConnectPolicy::Tunnel),
        (Some("key"), Some(ConnectPolicy::Inspect), ConnectPolicy::Inspect),
    ] {
        let config = with_route(|route| {
            route.sign.clear();
            route.credential = credential.map(|name| at(1, name.into()));
            route.connect = connect.map(|connect| at(2, connect));
        });
        assert_eq!(compile(&config).0.routes[0].connect, expected);
    }
}

/// (the route's signer and credential, its `connect`, its paths; the variant's signer and credential; the tunnel policy
/// of each side; the problems).
type Sides<'a> = ([&'a str; 2], Option<ConnectPolicy>, &'a [&'a str], [&'a str; 2], [ConnectPolicy; 2], &'a [&'a str]);

#[test]
fn split_variant_restricts_tunnels() {
    use ConnectPolicy::{Inspect, Refuse, Tunnel};
    let (nothing, signs, shows) = (["", ""], ["platform", ""], ["", "key"]);
    let unseen: &[&str] = &["tunnels to these hosts would bypass the signature or credential of this split"];
    let pathless: &str = "warning: the path of a tunnel is unknown, so a route with paths opens no tunnel";
    let unsigned: &str = "warning: outgate does not sign requests inside a tunnel";
    let table: &[Sides<'_>] = &[
        (nothing, None, &[], signs, [Tunnel, Refuse], &[]),
        (nothing, None, &[], shows, [Tunnel, Refuse], &[]),
        (signs, None, &[], nothing, [Refuse, Refuse], &[]),
        (signs, None, &["/in"], nothing, [Refuse, Refuse], &[]),
        (nothing, None, &["/in"], signs, [Tunnel, Refuse], unseen),
        (nothing, None, &["/in"], shows, [Tunnel, Refuse], unseen),
        (nothing, Some(Tunnel), &["/in"], signs, [Tunnel, Tunnel], &[pathless, unsigned]),
        (nothing, Some(Refuse), &["/in"], signs, [Refuse, Refuse], &[]),
        (nothing, Some(Inspect), &["/in"], signs, [Inspect, Inspect], &[]),
        (nothing, Some(Tunnel), &[], signs, [Tunnel, Tunnel], &[unsigned]),
        // Reported once, although it applies to both sides.
        (
            signs,
            Some(Tunnel),
            &[],
            shows,
            [Tunnel, Tunnel],
            &[unsigned, "warning: outgate adds no credential inside a tunnel"],
        ),
    ];
    let some = |name: &str| (!name.is_empty()).then(|| at(5, name.to_owned()));
    for (i, (main, connect, paths, other, expected, expected_messages)) in table.iter().enumerate() {
        let mut config = with_route(|route| {
            (route.sign, route.credential) = (some(main[0]).into_iter().collect(), some(main[1]));
            route.connect = connect.map(|connect| at(6, connect));
            route.paths = paths.iter().map(|path| at(7, (*path).to_owned())).collect();
            let (sign, credential) = (some(other[0]).into_iter().collect(), some(other[1]));
            let other = config::Route { sign, credential, ..route.clone() };
            route.split = Some(at(8, config::Split { share: 100, route: Box::new(other) }));
        });
        let value = at(2, Secret::new(b"k".to_vec()));
        let scheme = Authentication::Header { name: at(2, "X-Key".into()), value };
        config.credentials.insert(CredentialName::new("key"), at(2, Credential { scheme, plaintext: false }));
        let (routes, problems) = compile(&config);
        let route = &routes.routes[0];
        assert_eq!([route.connect, route.split.as_ref().unwrap().variant().connect], *expected, "{i}");
        let reported = messages(&problems).into_iter().filter(|message| !message.contains("no route uses"));
        assert_eq!(reported.collect::<Vec<_>>(), *expected_messages, "{i}");
    }
}

/// Problems of the variant alone are found, too.
#[test]
fn split_variant_is_checked_like_any_route() {
    let mut config = with_route(|route| {
        let signed = config::Route { sign: vec![at(5, "platform".into()), at(6, "platform".into())], ..route.clone() };
        route.sign.clear();
        route.body_max = Some(at(7, (64 << 20) + 1));
        let other = config::Route { body_max: route.body_max.clone(), ..signed };
        route.split = Some(at(8, config::Split { share: 1, route: Box::new(other) }));
    });
    let expected = [
        "the signers platform and platform write the same headers",
        "outgate buffers signed bodies, up to 64 MiB each",
    ];
    assert_eq!(messages(&compile(&config).1), expected);
    // Names that only the variant refers to are in use.
    config.routes[0].value.body_max = None;
    config.routes[0].value.split.as_mut().unwrap().value.route.sign.truncate(1);
    config.routes[0].value.split.as_mut().unwrap().value.route.body_max = None;
    assert_eq!(messages(&compile(&config).1), Vec::<String>::new());
}

#[test]
fn routes_that_match_the_same_are_a_problem() {
    type Change = fn(&mut config::Route);
    let tenants = |route: &mut config::Route| route.tenants = vec![at(1, "acme".into()), at(1, "beta".into())];
    let table: &[(Change, Change, bool)] = &[
        (|_| {}, |_| {}, true),
        (|_| {}, |r| r.hosts[0].value = "Hooks.ACME.example".into(), true),
        (|_| {}, |r| r.hosts[0].value = "*.acme.example".into(), false),
        (|_| {}, |r| r.paths = vec![at(1, "/in".into())], false),
        (|_| {}, |r| r.tenants = vec![at(1, "acme".into())], false),
        (tenants, |r| r.tenants = vec![at(1, "beta".into())], true),
        (tenants, |r| r.tenants = vec![at(1, "other".into())], false),
        (tenants, |r| r.clients = vec![at(1, "billing".into())], false),
    ];
    for (i, (first, second, expected)) in table.iter().enumerate() {
        let mut config = with_route(first);
        let mut other = route(200, "other", "hooks.acme.example");
        second(&mut other.value);
        config.routes.push(other);
        let (_, problems) = compile(&config);
        let places: Vec<_> =
            problems.iter().map(|p| (p.span.unwrap().start, p.related.as_ref().unwrap().0.start)).collect();
        assert_eq!(places, Vec::from_iter(expected.then_some((200, 100))), "{i} {problems:?}");
    }
}

/// (clients with their tenants, routes with their tenants and clients, the unreachable routes).
type Hidden<'a> = (&'a [(&'a str, &'a [&'a str])], &'a [(&'a [&'a str], &'a [&'a str])], &'a [usize]);

#[test]
fn unreachable_routes_are_a_problem() {
    let table: &[Hidden<'_>] = &[
        (&[("a", &["t"])], &[(&["t"], &["a"])], &[]),
        (&[("a", &["t"])], &[(&["u"], &["a"])], &[0]),
        (&[("a", &["t"])], &[(&["u"], &[])], &[0]),
        (&[("a", &["t"])], &[(&["t", "u"], &[])], &[]),
        (&[("a", &["*"])], &[(&["u"], &[])], &[]),
        (&[("a", &["t"]), ("b", &["u"])], &[(&["u"], &["a"]), (&["t"], &["a", "b"])], &[0]),
        (&[("a", &["*"]), ("b", &["*"])], &[(&[], &["a"]), (&[], &["b"]), (&[], &[])], &[2]),
        (&[("a", &["*"]), ("b", &["*"])], &[(&[], &["a"]), (&["t"], &["b"]), (&[], &[])], &[]),
        (&[("a", &["t"]), ("b", &["u"])], &[(&["t"], &["a"]), (&["t"], &[]), (&[], &[])], &[1]),
        // Without clients, another problem is reported.
        (&[], &[(&["t"], &[])], &[]),
    ];
    let list = |names: &[&str]| names.iter().map(|name| at(1, (*name).to_owned())).collect::<Vec<_>>();
    for (i, (clients, routes, expected)) in table.iter().enumerate() {
        let mut config = config();
        for (name, tenants) in *clients {
            let named = config::Client { tenants: list(tenants), ..client() };
            config.clients.insert(ClientName::new(*name), at(60, named));
        }
        for (number, (tenants, clients)) in routes.iter().enumerate() {
            let mut route = route(100 * (number as u32 + 1), &number.to_string(), "hooks.acme.example");
            (route.value.tenants, route.value.clients) = (list(tenants), list(clients));
            config.routes.push(route);
        }
        let (_, problems) = compile(&config);
        let found: Vec<_> = problems.iter().map(|p| (p.span.unwrap().start, p.related.is_some())).collect();
        let expected: Vec<_> = expected.iter().map(|number| (100 * (*number as u32 + 1), true)).collect();
        assert_eq!(found, expected, "{i} {problems:?}");
    }
}

/// Whether the first route only reports, whether the second does, and the problems.
#[test]
fn report_only_route_does_not_shadow_other_routes() {
    for (first, second, expected) in [
        (false, false, &["this route matches the same requests as another route"][..]),
        (true, false, &[]),
        (false, true, &[]),
        (
            true,
            true,
            &[
                "warning: every route is report_only: outgate would refuse every request as no_route",
                "this route matches the same requests as another route",
            ],
        ),
    ] {
        let mut config = with_route(|route| route.report_only = first);
        let mut other = route(200, "other", "hooks.acme.example");
        other.value.report_only = second;
        config.routes.push(other);
        let (routes, problems) = compile(&config);
        assert_eq!(messages(&problems), expected, "{first} {second}");
        let (client, host) = (ClientName::new("billing"), Host::Name("hooks.acme.example".into()));
        let shadow = routes.shadow(&client, None, &host, "/").map(|(route, _)| route);
        let found = [routes.select(&client, None, &host, "/").unwrap(), shadow]
            .map(|route| route.map(|route| route.name.to_string()));
        if expected.is_empty() {
            assert_eq!(found.map(Option::unwrap), if first { ["other", "acme"] } else { ["acme", "other"] });
        }
    }
    // An unreachable report-only route is reported before it is enforced.
    let mut config = with_route(|_| {});
    let mut other = route(200, "other", "else.acme.example");
    (other.value.report_only, other.value.clients) = (true, vec![at(201, "billing".into())]);
    other.value.tenants = vec![at(202, "acme".into())];
    config.clients.get_mut("billing").unwrap().value.tenants.clear();
    config.routes.push(other);
    let expected = "no webhook can match this route: none of its clients may send for its tenants";
    assert_eq!(messages(&compile(&config).1), [expected]);
}

#[test]
fn routes_compile_reports_a_missing_or_duplicate_route() {
    assert_eq!(
        messages(&compile(&config()).1),
        ["warning: no route is configured: outgate would refuse every request as no_route"]
    );
    let mut config = with_route(|_| {});
    config.routes.push(route(200, "acme", "*"));
    assert_eq!(messages(&compile(&config).1), ["two routes are named \"acme\""]);
}

#[test]
fn a_path_with_too_many_readings_is_a_problem() {
    let path = format!("/%{}2e", "25".repeat(1000));
    let problems = compile(&with_route(|route| route.paths = vec![at(150, path)])).1;
    let expected = "servers can read this path in too many ways: each request to it would be refused as ambiguous";
    assert_eq!(messages(&problems), [expected]);
}
