//! The guard's decision for every kind of name, port and address.
//! Is there a way around the guard?

use std::time::Duration;

use super::*;
use crate::config::SourceSpan;
use crate::host::canonical;

fn at<T>(value: T) -> Located<T> {
    Located { value, span: SourceSpan { file: 0, start: 0, end: 0 } }
}

/// Returns a guard section; a denied network with a leading `?` only reports.
fn section(allow: &[&str], deny: &[&str]) -> config::Guard {
    let denied = |text: &&str| {
        let cidr = text.trim_start_matches('?').parse().unwrap();
        at(config::DeniedNetwork { cidr, report_only: text.starts_with('?') })
    };
    let allow = allow.iter().map(|cidr| at(cidr.parse().unwrap())).collect();
    config::Guard { allow, deny: deny.iter().map(denied).collect(), ports: vec![at(443)] }
}

fn guard(allow: &[&str], deny: &[&str]) -> Guard {
    let hosts = [(canonical("good.example").unwrap(), vec!["127.0.0.2".parse().unwrap()])].into();
    let range = config::PoolRange { cidr: "8.8.8.0/28".parse().unwrap(), seen_as: None, from: None, until: None };
    let pool = config::Pool {
        ranges: vec![at(range)],
        exclude: Vec::new(),
        select: config::SelectionPolicy::Sticky,
        failover: true,
        notice: Duration::ZERO,
        force: false,
    };
    let resolver = config::Resolver { servers: Vec::new(), hosts };
    Guard::new(&section(allow, deny), &resolver, &[(PoolName::new("main"), at(pool))].into())
}

fn local_addresses() -> LocalAddresses {
    LocalAddresses {
        prefixes: vec!["127.0.0.0/8".parse().unwrap(), "9.9.9.9/32".parse().unwrap()],
        listeners: vec!["127.0.0.1:4750".parse().unwrap(), "[::]:4751".parse().unwrap()],
    }
}

fn target(host: &str, port: u16) -> Target {
    Target { scheme: Scheme::Https, host: canonical(host).unwrap(), port }
}

/// Returns the decision for one address: `ok`, `loops back`, or the rule.
fn verdict(guard: &Guard, address: &str, port: u16) -> String {
    let answers = ["1.0.0.1".parse().unwrap(), address.parse().unwrap()];
    match guard.clear(&target("hooks.acme.com", port), &answers, &local_addresses()) {
        Ok(cleared) => {
            assert_eq!((cleared.addresses().len(), cleared.port()), (2, port));
            "ok".to_owned()
        }
        Err(Forbidden::LoopsBack) => "loops back".to_owned(),
        Err(Forbidden::Address { address: refused, rule }) => {
            assert_eq!(refused, answers[1]);
            rule
        }
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn guard_judges_addresses_by_registry_allow_deny_and_host() {
    let nat64 = "IPv4-IPv6 Translation (NAT64 well-known), RFC 6052";
    let mapped = "IPv4-mapped, RFC 4291";
    let imds = "cloud metadata, AWS, Azure, Google, IBM, Linode, Oracle, DigitalOcean, Hetzner, OpenStack and others";
    let none: &[&str] = &[];
    let table: &[(&[&str], &[&str], &str, &str)] = &[
        (none, none, "1.1.1.1", "ok"),
        (none, none, "2606:4700::1111", "ok"),
        (none, none, "10.0.0.1", "Private-Use, RFC 1918"),
        (none, none, "::1", "Loopback, RFC 4291"),
        (none, none, "::ffff:1.1.1.1", mapped),
        // deny, and allow, and both
        (none, &["1.1.1.0/24"], "1.1.1.7", "guard.deny 1.1.1.0/24"),
        (none, &["1.1.1.0/24"], "2606:4700::5efe:101:107", "guard.deny 1.1.1.0/24"),
        (&["10.0.0.0/8"], none, "10.0.0.1", "ok"),
        (&["10.0.0.0/8"], none, "192.168.0.1", "Private-Use, RFC 1918"),
        (&["10.0.0.0/8"], &["10.1.0.0/16"], "10.1.0.1", "guard.deny 10.1.0.0/16"),
        (&["10.1.0.0/16"], &["10.0.0.0/8"], "10.1.0.1", "guard.deny 10.0.0.0/8"),
        (&["::1/128"], none, "::1", "ok"),
        // addresses of this host and of pools
        (none, none, "9.9.9.9", "an address of this host"),
        (none, none, "8.8.8.15", "an address of egress.main"),
        (none, none, "8.8.8.16", "ok"),
        (&["9.9.9.9/32", "8.8.8.0/24"], none, "9.9.9.9", "ok"),
        (&["9.9.9.9/32", "8.8.8.0/24"], none, "8.8.8.15", "ok"),
        // metadata, never
        (&["169.254.0.0/16"], none, "169.254.169.254", imds),
        (&["169.254.169.254/32"], none, "169.254.169.254", imds),
        (&["168.63.0.0/16"], none, "168.63.129.16", "cloud metadata, Azure WireServer"),
        // An exception for an embedding does not cover the embedded address, nor the other way round.
        (&["64:ff9b::/96"], none, "64:ff9b::101:101", "ok"),
        (&["64:ff9b::/96"], none, "64:ff9b::a00:1", "Private-Use, RFC 1918"),
        (&["64:ff9b::/96"], none, "64:ff9b::a9fe:a9fe", imds),
        (&["64:ff9b::/96", "169.254.0.0/16"], none, "64:ff9b::a9fe:a9fe", imds),
        (&["64:ff9b::/96", "10.0.0.0/8"], none, "64:ff9b::a00:1", "ok"),
        (&["64:ff9b::/96"], &["1.1.1.1/32"], "64:ff9b::101:101", "guard.deny 1.1.1.1/32"),
        (&["64:ff9b::/96"], none, "64:ff9b::909:909", "an address of this host"),
        (&["10.0.0.0/8"], none, "64:ff9b::a00:1", nat64),
        (&["::ffff:0:0/96"], none, "::ffff:1.1.1.1", "ok"),
        (&["::ffff:0:0/96"], none, "::ffff:127.0.0.1", "Loopback, RFC 1122"),
        (&["10.0.0.0/8"], none, "::ffff:10.0.0.1", mapped),
        (&["2002::/16"], none, "2002:a00:1::1", "Private-Use, RFC 1918"),
        (&["2001::/32"], none, "2001:0:101:101:8000:cfc6:f5ff:fffe", "Private-Use, RFC 1918"),
        // A local translation prefix has the layout of its length.
        (&["64:ff9b:1::/96"], none, "64:ff9b:1::101:101", "ok"),
        (&["64:ff9b:1::/96"], none, "64:ff9b:1::a00:1", "Private-Use, RFC 1918"),
        (&["64:ff9b:1::/48"], none, "64:ff9b:1:101:1:100::", "ok"),
        (&["64:ff9b:1::/48"], none, "64:ff9b:1:a00:0:100::", "Private-Use, RFC 1918"),
        (&["64:ff9b:1::/48"], none, "64:ff9b:1::101:101", "This host on this network, RFC 1122"),
        (&["64:ff9b:1::/48"], none, "64:ff9b:1::a9fe:a9fe", imds),
        (&["64:ff9b:1:2::/64"], none, "64:ff9b:1:2:1:101:100:0", "ok"),
        (&["64:ff9b::/32"], none, "64:ff9b:1::101:101", "This host on this network, RFC 1122"),
    ];
    for (allow, deny, address, expected) in table {
        assert_eq!(verdict(&guard(allow, deny), address, 443), *expected, "{address} allow {allow:?} deny {deny:?}");
    }
}

/// A report-only entry refuses nothing and allows nothing.
#[test]
fn guard_report_only_denials_refuse_nothing() {
    type Reported<'a> = (&'a [&'a str], &'a [&'a str], &'a str, Result<Option<&'a str>, &'a str>);
    let imds = "cloud metadata, AWS, Azure, Google, IBM, Linode, Oracle, DigitalOcean, Hetzner, OpenStack and others";
    let table: &[Reported<'_>] = &[
        (&[], &["?1.1.1.0/24"], "1.1.1.7", Ok(Some("1.1.1.0/24"))),
        (&[], &["?1.1.1.7/24"], "1.1.1.9", Ok(Some("1.1.1.0/24"))),
        (&[], &["?1.1.1.0/24"], "1.1.2.7", Ok(None)),
        (&[], &["?1.1.1.0/24"], "2606:4700::5efe:101:107", Ok(Some("1.1.1.0/24"))),
        (&["64:ff9b::/96"], &["?1.1.1.0/24"], "64:ff9b::101:107", Ok(Some("1.1.1.0/24"))),
        // It takes precedence over allow, as an enforced entry does.
        (&["10.0.0.0/8"], &["?10.1.0.0/16"], "10.1.0.1", Ok(Some("10.1.0.0/16"))),
        // An enforced entry refuses whatever its position.
        (&[], &["?1.1.1.0/24", "1.1.1.7/32"], "1.1.1.7", Err("guard.deny 1.1.1.7/32")),
        (&[], &["1.1.1.0/24", "?1.1.1.7/32"], "1.1.1.7", Err("guard.deny 1.1.1.0/24")),
        // A report-only entry does not override the registry, metadata and local addresses.
        (&[], &["?10.0.0.0/8"], "10.0.0.1", Err("Private-Use, RFC 1918")),
        (&["169.254.0.0/16"], &["?169.254.0.0/16"], "169.254.169.254", Err(imds)),
        (&[], &["?9.9.9.9/32"], "9.9.9.9", Err("an address of this host")),
        (&[], &["?8.8.8.0/28"], "8.8.8.15", Err("an address of egress.main")),
    ];
    for (allow, deny, address, expected) in table {
        let guard = guard(allow, deny);
        let answers = ["1.0.0.1".parse().unwrap(), address.parse().unwrap()];
        let found = guard.clear(&target("hooks.acme.com", 443), &answers, &local_addresses());
        let found = found.map(|cleared| cleared.would_deny().map(|deny| deny.to_string()));
        match (&found, expected) {
            (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), *expected, "{address} {deny:?}"),
            (Err(Forbidden::Address { rule, .. }), Err(expected)) => assert_eq!(rule, expected, "{address} {deny:?}"),
            _ => panic!("{address} {deny:?}: {found:?}"),
        }
    }
}

#[test]
fn guard_refuses_own_listeners_as_loops() {
    let open = guard(&["127.0.0.0/8", "::/8", "9.9.9.9/32", "8.8.8.0/24", "0.0.0.0/8", "64:ff9b::/96"], &[]);
    let table = [
        ("127.0.0.1", 4750, "loops back"),
        ("::ffff:127.0.0.1", 4750, "loops back"),
        ("64:ff9b::7f00:1", 4750, "loops back"),
        ("0.0.0.0", 4750, "loops back"),
        ("::", 4750, "loops back"),
        ("127.0.0.2", 4750, "ok"),
        ("127.0.0.1", 4752, "ok"),
        ("127.9.9.9", 4751, "loops back"),
        ("::1", 4751, "loops back"),
        ("9.9.9.9", 4751, "loops back"),
        ("8.8.8.1", 4751, "loops back"),
        ("1.1.1.1", 4751, "ok"),
    ];
    for (address, port, expected) in table {
        assert_eq!(verdict(&open, address, port), expected, "{address} {port}");
    }
}

#[test]
fn guard_judges_an_address_literal_without_dns_answers() {
    let guard = guard(&["::ffff:0:0/96"], &[]);
    let public = ["1.1.1.1".parse().unwrap()];
    assert!(guard.clear(&target("10.0.0.1", 443), &public, &local_addresses()).is_err());
    let cleared = guard.clear(&target("[::ffff:1.0.0.1]", 443), &[], &local_addresses()).unwrap();
    assert_eq!(cleared.addresses(), ["1.0.0.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn guard_judges_names_and_ports_before_dns() {
    let guard = guard(&[], &[]);
    let port = |port| Err(Forbidden::Port(port));
    use Scheme::{Http, Https};
    let table = [
        (Https, "hooks.acme.com", 443, false, Ok(())),
        (Https, "hooks.acme.com", 8443, false, Ok(())), // named by the route
        (Https, "hooks.acme.com", 80, true, port(80)),
        (Https, "hooks.acme.com", 22, true, port(22)),
        (Http, "hooks.acme.com", 80, true, Ok(())),
        (Http, "hooks.acme.com", 80, false, port(80)),
        (Http, "hooks.acme.com", 8080, true, port(8080)),
        (Https, "LOCALHOST.", 443, false, Err(Forbidden::Name)),
        (Https, "a.localhost", 443, false, Err(Forbidden::Name)),
        (Https, "notlocalhost", 443, false, Ok(())),
        (Https, "metadata.google.internal", 443, false, Err(Forbidden::Name)),
        (Https, "metadata.goog", 443, false, Err(Forbidden::Name)),
        (Https, "metadata.packet.net", 443, false, Err(Forbidden::Name)),
        (Https, "metadata.platformequinix.com", 443, false, Err(Forbidden::Name)),
        (Https, "packet.net", 443, false, Ok(())),
        (Https, "db.svc.cluster.local", 443, false, Err(Forbidden::Name)),
        (Https, "kubernetes.default.svc", 443, false, Err(Forbidden::Name)),
        (Https, "router.home.arpa", 443, false, Err(Forbidden::Name)),
        (Https, "bad.example", 443, false, Err(Forbidden::Name)),
        (Https, "good.example", 443, false, Ok(())), // in resolver.hosts
        (Https, "a.good.example", 443, false, Err(Forbidden::Name)),
        (Https, "example.com", 443, false, Ok(())),
        (Https, "10.0.0.1", 443, false, Ok(())), // judged by `clear`
    ];
    for (scheme, host, port, plaintext, expected) in table {
        let target = Target { scheme, ..target(host, port) };
        assert_eq!(guard.check_name(&target, &[8443], plaintext), expected, "{target}");
    }
}

#[test]
fn guard_refuses_the_metadata_host_names_of_clouds() {
    let guard = guard(&["0.0.0.0/0", "::/0"], &[]);
    let judge = |host: &str| guard.check_name(&target(host, 443), &[], false);
    for host in [
        "metadata.google.internal",
        "metadata.goog",
        "metadata.packet.net",
        "metadata.platformequinix.com",
        "metadata.tencentyun.com",
        "api.metadata.cloud.ibm.com",
    ] {
        for host in [host.to_owned(), format!("{}.", host.to_uppercase()), format!("x.{host}")] {
            assert_eq!(judge(&host), Err(Forbidden::Name), "{host}");
        }
    }
    for host in ["metadata.cloud.ibm.com", "us-south.iaas.cloud.ibm.com", "tencentyun.com", "notmetadata.goog"] {
        assert_eq!(judge(host), Ok(()), "{host}");
    }
}

#[test]
fn guard_allow_reports_each_problem() {
    let table: &[(&str, &[&str], &[&str])] = &[
        ("10.0.0.0/8", &[], &[]),
        ("0.0.0.0/0", &[], &["`0.0.0.0/0` allows every address, so the guard would permit private networks"]),
        ("::/0", &[], &["`::/0` allows every address, so the guard would permit private networks"]),
        ("169.254.0.0/16", &[], &["`169.254.0.0/16` covers cloud metadata addresses"]),
        ("161.26.1.0/24", &[], &["`161.26.1.0/24` covers cloud metadata addresses"]),
        ("10.1.0.0/16", &["10.0.0.0/8"], &["`10.1.0.0/16` has no effect: guard.deny precedes guard.allow"]),
        ("10.0.0.0/8", &["10.1.0.0/16"], &[]),
        ("10.1.0.0/16", &["?10.0.0.0/8"], &[]),
    ];
    for (allow, deny, expected) in table {
        let mut problems = Vec::new();
        check_allow(&section(&[allow], deny), &mut problems);
        let messages: Vec<_> = problems.iter().map(|problem| problem.message.as_str()).collect();
        assert_eq!(messages, *expected);
    }
}

#[test]
fn guard_knows_the_addresses_of_literals_and_pinned_names_without_dns() {
    let guard = guard(&[], &["?1.1.1.0/24", "9.9.9.0/24", "?8.8.8.0/24"]);
    let addresses = |host: &str| {
        let host = canonical(host).unwrap();
        guard.pinned_addresses(&host).map(|addresses| addresses.iter().map(ToString::to_string).collect::<Vec<_>>())
    };
    assert_eq!(addresses("good.example"), Some(vec!["127.0.0.2".to_owned()]));
    assert_eq!(addresses("[2606:4700::1111]"), Some(vec!["2606:4700::1111".to_owned()]));
    assert_eq!(addresses("hooks.acme.com"), None);
    let reported: Vec<_> = guard.report_only_denials().iter().map(ToString::to_string).collect();
    assert_eq!(reported, ["1.1.1.0/24", "8.8.8.0/24"]);
}
