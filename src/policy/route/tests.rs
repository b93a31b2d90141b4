//! Tests of route lookups.
//! Is the best match found, and does an ambiguous path have a route only if its readings agree?

use super::*;
use crate::config::RouteTimeouts;
use crate::policy::fixture::{self, at, config, route};
use crate::policy::{egress, trust};
use proptest::prelude::*;

/// (name, host, path, tenant, client); the last three are empty if the route does not name them.
type Written<'a> = (&'a str, &'a str, &'a str, &'a str, &'a str);

fn routes(written: &[Written<'_>]) -> Routes {
    let mut config = config();
    for (i, (name, host, path, tenant, client)) in written.iter().enumerate() {
        let mut route = route(100 + 10 * i as u32, name, host);
        let named = |text: &str| Vec::from_iter((!text.is_empty()).then(|| at(99, text.to_owned())));
        (route.value.paths, route.value.tenants, route.value.clients) = (named(path), named(tenant), named(client));
        config.routes.push(route);
        // Another client exists, for routes that name none.
        for name in [client, "anybody"].into_iter().filter(|name| !name.is_empty()) {
            let client = crate::config::Client { tenants: vec![at(97, "*".into())], ..fixture::client() };
            config.clients.insert(ClientName::new(name), at(98, client));
        }
    }
    compile(&config)
}

fn compile(config: &crate::config::Config) -> Routes {
    let mut problems = vec![];
    let (pools, trusts) =
        (egress::compile(config, jiff::Timestamp::UNIX_EPOCH, &mut vec![]), trust::compile(config, &mut vec![]));
    let (signers, credentials, limits) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    let tables =
        NamedTables { pools: &pools, trusts: &trusts, signers: &signers, credentials: &credentials, limits: &limits };
    let routes = Routes::compile(config, &tables, &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    routes
}

fn names(routes: &Routes, host: &str, path: &str, tenant: &str, client: &str) -> Vec<String> {
    let tenant = Some(TenantName::new(tenant)).filter(|tenant| !tenant.as_str().is_empty());
    let (client, host) = (ClientName::new(client), crate::host::canonical(host).unwrap());
    let candidates = routes.candidates(&client, tenant.as_ref(), &host, path);
    let first = routes.select(&client, tenant.as_ref(), &host, path);
    // An ambiguous path selects no route; the candidates are those of the path as sent.
    if let Ok(first) = first {
        assert_eq!(first.map(Arc::as_ptr), candidates.first().map(|(_, found)| Arc::as_ptr(found.route)));
    }
    candidates.iter().map(|(_, found)| found.route.name.to_string()).collect()
}

#[test]
fn each_timeout_of_a_route_precedes_that_of_the_configuration() {
    let compiled = |timeouts: RouteTimeouts| {
        let mut config = config();
        let mut written = route(100, "a", "hooks.acme.example");
        written.value.timeouts = timeouts;
        config.routes.push(written);
        let Timeouts { dns, connect, tls, body, response, idle, total, tunnel, reuse } =
            compile(&config).all().next().unwrap().timeouts.clone();
        [dns, connect, tls, body, response, idle, total, tunnel, reuse].map(|timeout| timeout.as_secs())
    };
    let own = |seconds| Some(Duration::from_secs(seconds));
    let timeouts = RouteTimeouts {
        dns: own(2),
        connect: own(3),
        tls: own(4),
        body: own(5),
        response: own(6),
        idle: own(7),
        total: own(8),
        tunnel: own(9),
    };
    assert_eq!(compiled(RouteTimeouts::default()), [1; 9]);
    assert_eq!(compiled(timeouts), [2, 3, 4, 5, 6, 7, 8, 9, 1]);
}

#[test]
fn routes_are_ranked_by_host_path_tenant_and_client() {
    let routes = routes(&[
        ("any", "*", "", "", ""),
        ("client", "hooks.acme.example", "", "", "billing"),
        ("tenant", "hooks.acme.example", "", "acme", ""),
        ("both", "hooks.acme.example", "", "acme", "billing"),
        ("host", "hooks.acme.example", "", "", ""),
        ("deep", "hooks.acme.example", "/in/deep", "", ""),
        ("path", "hooks.acme.example", "/in", "", ""),
        ("acme", "*.acme.example", "", "", ""),
        ("acme-path", "*.acme.example", "/in/deep", "", ""),
        ("eu", "*.eu.acme.example", "", "", ""),
        ("address", "192.0.2.1", "", "", ""),
    ]);
    let all = ["both", "tenant", "client", "host", "acme", "any"];
    for (host, path, tenant, client, expected) in [
        ("hooks.acme.example", "/", "acme", "billing", &all[..]),
        ("hooks.acme.example", "/", "acme", "other", &["tenant", "host", "acme", "any"]),
        ("hooks.acme.example", "/", "", "billing", &["client", "host", "acme", "any"]),
        ("hooks.acme.example", "/", "other", "other", &["host", "acme", "any"]),
        // A longer path precedes a named tenant or client; a host precedes any path.
        ("hooks.acme.example", "/in/deep/x", "", "x", &["deep", "path", "host", "acme-path", "acme", "any"]),
        ("hooks.acme.example", "/in/deeper", "", "x", &["path", "host", "acme", "any"]),
        ("a.eu.acme.example", "/in/deep", "", "x", &["eu", "acme-path", "acme", "any"]),
        ("eu.acme.example", "/", "", "x", &["acme", "any"]),
        ("acme.example", "/", "", "x", &["any"]),
        ("xacme.example", "/", "", "x", &["any"]),
        ("192.0.2.1", "/", "", "x", &["address", "any"]),
        ("192.0.2.2", "/", "", "x", &["any"]),
    ] {
        assert_eq!(names(&routes, host, path, tenant, client), expected, "{host}{path} {tenant} {client}");
    }
}

#[test]
fn route_paths_match_by_segment_prefix() {
    for (prefix, path, expected) in [
        ("/in", "/in", true),
        ("/in", "/in/", true),
        ("/in", "/in/x", true),
        ("/in", "/inn", false),
        ("/in", "/i", false),
        ("/in", "/IN", false),
        ("/in/", "/in", false),
        ("/in/", "/in/", true),
        ("/in/", "/in/x", true),
        ("/", "/anything", true),
    ] {
        let routes = routes(&[("r", "*", prefix, "", "")]);
        assert_eq!(names(&routes, "a.example", path, "", "c").len(), usize::from(expected), "{prefix} {path}");
    }
}

proptest! {
    /// The lookup equals a linear search over the host patterns.
    #[test]
    fn route_lookup_equals_a_linear_search_by_host(
        patterns in prop::collection::btree_set("(\\*|(\\*\\.)?([ab]\\.){0,3}acme\\.example)", 1..12),
        host in "([ab]\\.){0,4}acme\\.example",
    ) {
        let written: Vec<Written<'_>> = patterns.iter().map(|text| (&**text, &**text, "", "", "")).collect();
        let routes = routes(&written);
        let target = crate::host::canonical(&host).unwrap();
        let matches = |pattern: &&String| crate::host::HostPattern::parse(pattern).unwrap().matches(&target);
        let mut expected: Vec<String> = patterns.iter().filter(matches).cloned().collect();
        expected.sort_by_key(|pattern| (pattern.starts_with('*'), std::cmp::Reverse(pattern.len())));
        prop_assert_eq!(names(&routes, &host, "/", "", "c"), expected);
    }

    /// The lookup equals a linear search over paths, tenants and clients as well.
    #[test]
    fn route_lookup_equals_a_linear_search_by_all_dimensions(
        written in prop::collection::btree_set(
            ("(\\*|(\\*\\.)?a\\.example)", "(|(/[ab]?){1,3})", "(|[tu])", "(|[cd])"), 1..20),
        requests in prop::collection::vec(("(a|b)\\.a\\.example|a\\.example|z", "(/[abc]?){1,4}", "(|[tuv])", "[cde]"), 1..20),
    ) {
        let written: Vec<_> = written.into_iter().enumerate().map(|(i, it)| (format!("r{i}"), it)).collect();
        let list: Vec<Written<'_>> =
            written.iter().map(|(name, (host, path, tenant, client))| (&**name, &**host, &**path, &**tenant, &**client)).collect();
        let routes = routes(&list);
        for (host, path, tenant, client) in requests {
            let target = crate::host::canonical(&host).unwrap();
            let below = |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| {
                prefix.is_empty() || prefix.ends_with('/') || rest.is_empty() || rest.starts_with('/')
            });
            let mut expected: Vec<&Written<'_>> = list.iter().filter(|(_, pattern, prefix, of, by)| {
                crate::host::HostPattern::parse(pattern).unwrap().matches(&target) && below(prefix)
                    && (of.is_empty() || *of == tenant) && (by.is_empty() || *by == client)
            }).collect();
            expected.sort_by_key(|(_, pattern, prefix, of, by)| {
                (pattern.starts_with('*'), std::cmp::Reverse((pattern.len(), prefix.len())), of.is_empty(), by.is_empty())
            });
            let expected: Vec<String> = expected.iter().map(|(name, ..)| (*name).to_owned()).collect();
            prop_assert_eq!(names(&routes, &host, &path, &tenant, &client), expected, "{} {} {} {}", host, path, tenant, client);
        }
    }
}

/// Returns the name of the route, or `Err` if the path is ambiguous.
fn chosen(routes: &Routes, path: &str) -> Result<Option<String>, String> {
    let host = crate::host::canonical("a.example").unwrap();
    let found = routes.select(&ClientName::new("c"), None, &host, path);
    found.map(|route| route.map(|route| route.name.to_string())).map_err(|error| match error {
        AmbiguousPath::DifferentRoute { reading, .. } => reading,
        AmbiguousPath::TooManyReadings => "too many".to_owned(),
    })
}

#[test]
fn ambiguous_path_has_a_route_only_if_its_readings_agree() {
    let one = routes(&[("hooks", "a.example", "/webhooks/", "", "")]);
    let hooks = || Ok(Some("hooks".to_owned()));
    for (path, expected) in [
        ("/webhooks/x", hooks()),
        ("/webhooks//x", hooks()),
        ("/webhooks/a/../b", hooks()),
        ("/webhooks/a%2fb%20c;d", hooks()),
        ("/admin/x", Ok(None)),
        ("/admin/%2e%2e/x", Ok(None)),
        ("/webhooks/../admin/x", Err("/admin/x")),
        ("/webhooks/%2e%2e/admin/x", Err("/webhooks/../admin/x")),
        ("/webhooks/..%2fadmin/x", Err("/webhooks/../admin/x")),
        ("/admin/../webhooks/x", Err("/webhooks/x")),
        ("//webhooks/x", Err("/webhooks/x")),
        ("/%77ebhooks/x", Err("/webhooks/x")),
    ]
    .map(|(path, expected)| (path, expected.map_err(str::to_owned)))
    {
        let found = chosen(&one, path);
        assert_eq!(found.is_err(), expected.is_err(), "{path}: {found:?}");
        if found.is_ok() {
            assert_eq!(found, expected, "{path}");
        }
    }
    // If no route of the host names paths, no path is ambiguous.
    let whole = routes(&[("whole", "a.example", "", "", ""), ("other", "b.example", "/in", "", "")]);
    assert_eq!(chosen(&whole, "/webhooks/../admin"), Ok(Some("whole".to_owned())));
    let with_many_readings = format!("/%{}2e", "25".repeat(1000));
    assert_eq!(chosen(&whole, &with_many_readings), Ok(Some("whole".to_owned())));
    assert_eq!(chosen(&one, &with_many_readings), Err("too many".to_owned()));
    // The paths of a wildcard count for the host, too.
    let wild = routes(&[("whole", "a.example", "", "", ""), ("other", "*.example", "/in", "", "")]);
    assert_eq!(
        chosen(&wild, "/in/../admin"),
        Ok(Some("whole".to_owned())),
        "an exact host goes first, whatever the path"
    );
}

#[test]
fn a_reading_that_two_prefixes_share_has_neither_route_in_every_process() {
    // The iteration order of a map varies.
    for _ in 0..16 {
        let table = routes(&[("lower", "a.example", "/a%2fb", "", ""), ("upper", "a.example", "/a%2Fb", "", "")]);
        for path in ["/a%2fb", "/a%2Fb", "/a%2fb/x", "/a%2Fb/x"] {
            assert!(chosen(&table, path).is_err(), "{path}");
        }
        assert_eq!(chosen(&table, "/a/b"), Ok(None));
    }
    // A configured prefix is not taken by a reading of another tenant's route.
    let table = routes(&[("written", "a.example", "/a/b", "acme", ""), ("escaped", "a.example", "/a%2fb", "", "")]);
    assert_eq!(chosen(&table, "/a%2fb/x"), Ok(Some("escaped".to_owned())));
    // Nor is it taken by a reading of another route for the same requests.
    let table = routes(&[("written", "a.example", "/a/b", "", ""), ("escaped", "a.example", "/a%2fb", "", "")]);
    assert_eq!(chosen(&table, "/a/b/x/../y"), Ok(Some("written".to_owned())));
}

#[test]
fn route_prefix_with_escapes_matches_its_readings() {
    let table = routes(&[("spaced", "a.example", "/a%20b/", "", ""), ("slash", "a.example", "/c%2fd", "", "")]);
    for (path, expected) in [("/a%20b/x", "spaced"), ("/a%20b/x%20y", "spaced"), ("/c%2fd/x%20y", "slash")] {
        assert_eq!(chosen(&table, path), Ok(Some(expected.to_owned())));
    }
    assert!(chosen(&table, "/a%20b/../x").is_err());
    assert!(
        chosen(&table, "/c/d").is_ok_and(|route| route.is_none()),
        "a prefix as it is sent is compared byte for byte"
    );
}

/// How real servers resolve a path, each implemented independently.
mod servers {
    fn decode(path: &[u8]) -> Vec<u8> {
        let (mut decoded, mut at) = (Vec::new(), 0);
        while at < path.len() {
            let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
            match digits.filter(|_| path[at] == b'%').and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
                Some(byte) => (decoded.push(byte), at += 3),
                None => (decoded.push(path[at]), at += 1),
            };
        }
        decoded
    }

    fn resolve(path: &[u8], skips_empty: bool) -> Vec<u8> {
        let ends_open = path.ends_with(b"/") || path.ends_with(b"/.") || path.ends_with(b"/..");
        let mut stack: Vec<&[u8]> = Vec::new();
        for segment in path.split(|byte| *byte == b'/').skip(1) {
            match segment {
                b"" if skips_empty => {}
                b"." => {}
                b".." => drop(stack.pop()),
                segment => stack.push(segment),
            }
        }
        let mut resolved: Vec<u8> = stack.iter().flat_map(|segment| [b"/", *segment].concat()).collect();
        if (ends_open && !resolved.ends_with(b"/")) || resolved.is_empty() {
            resolved.push(b'/');
        }
        resolved
    }

    fn slashes(path: &[u8]) -> Vec<u8> {
        path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
    }

    /// nginx and most file servers: decode, merge slashes, resolve.
    pub(super) fn nginx(path: &[u8]) -> Vec<u8> {
        resolve(&decode(path), true)
    }

    /// RFC 3986 alone.
    pub(super) fn strict(path: &[u8]) -> Vec<u8> {
        resolve(path, false)
    }

    /// The WHATWG URL standard: backslashes are slashes, `%2e` is a dot.
    pub(super) fn whatwg(path: &[u8]) -> Vec<u8> {
        let text = String::from_utf8_lossy(path).replace("%2e", ".").replace("%2E", ".");
        resolve(&slashes(text.as_bytes()), false)
    }

    /// Tomcat: parameters go first, then as nginx.
    pub(super) fn tomcat(path: &[u8]) -> Vec<u8> {
        let segments =
            path.split(|byte| *byte == b'/').map(|segment| segment.split(|byte| *byte == b';').next().unwrap());
        nginx(&segments.collect::<Vec<_>>().join(&b'/'))
    }

    /// A gateway that decodes before a server that decodes.
    pub(super) fn twice(path: &[u8]) -> Vec<u8> {
        nginx(&nginx(path))
    }

    /// IIS: decode, then backslashes are slashes.
    pub(super) fn iis(path: &[u8]) -> Vec<u8> {
        resolve(&slashes(&decode(path)), true)
    }
}

proptest! {
    /// The path that a server resolves belongs to the selected route, whatever the server.
    #[test]
    fn routed_path_belongs_to_its_route_for_every_server(
        path in "/(a|b|in|/|\\.|%2e|%2E|%252e|%2f|%5c|%255c|\\\\|;|;x=1|%|%61|/\\.\\./|/\\./){0,12}",
        prefixes in prop::collection::btree_set("(|/in|/in/|/a/|/a/b|/b)", 1..5),
    ) {
        let written: Vec<Written<'_>> = prefixes.iter().map(|prefix| (if prefix.is_empty() { "-" } else { prefix }, "a.example", &**prefix, "", "")).collect();
        let routes = routes(&written);
        if let Ok(found) = chosen(&routes, &path) {
            for server in [servers::nginx, servers::strict, servers::whatwg, servers::tomcat, servers::twice, servers::iis] {
                let served = server(path.as_bytes());
                let host = crate::host::canonical("a.example").unwrap();
                let (client, seen) = (ClientName::new("c"), PathLookup::Reading(&served));
                let owner = routes.matches(&client, None, &host, seen).next().map(|(_, found)| found.route.name.to_string());
                prop_assert_eq!(&owner, &found, "{} served as {}", path, String::from_utf8_lossy(&served));
            }
        }
    }

    /// Plain paths are looked up as they are.
    #[test]
    fn plain_path_is_never_ambiguous(path in "(/[a-z.]{0,3}[a-z]){1,6}") {
        let routes = routes(&[("in", "a.example", "/in", "", ""), ("whole", "a.example", "", "", "")]);
        prop_assert!(chosen(&routes, &path).is_ok());
    }
}
