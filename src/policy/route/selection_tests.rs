//! Tests of the routes that decide tunnels, and of report-only routes.
//! Which route takes a CONNECT, and which would take a request if it were enforced?

use crate::host;
use crate::names::{ClientName, TenantName};
use crate::policy::fixture::plan;

/// The path of a tunnel is unknown, so a route for some paths of the host decides if it inspects or refuses.
#[test]
fn tunnel_takes_the_route_that_inspects_or_refuses_before_the_one_for_all_paths() {
    let route =
        |name: &str, hosts: &str, rest: &str| format!("[[routes]]\nname = \"{name}\"\nhosts = [\"{hosts}\"]\n{rest}\n");
    let text = [
        "[server]\nallow_anonymous = true\n".to_owned(),
        route("open", "a.example", ""),
        route("whole", "b.example", ""),
        route("part", "b.example", "paths = [\"/in\"]\nconnect = \"refuse\""),
        route("closed", "*.c.example", "connect = \"refuse\""),
        route("inner", "x.c.example", "paths = [\"/in\"]"),
        route("upgrading", "d.example", "plaintext = \"upgrade\""),
        route("plain", "e.example", ""),
        route("upgrading-part", "e.example", "paths = [\"/in\"]\nplaintext = \"upgrade\""),
        route("upgrading-whole", "f.example", "plaintext = \"upgrade\""),
        route("closed-part", "f.example", "paths = [\"/in\"]\nconnect = \"refuse\""),
    ]
    .concat();
    let plan = plan(&text);
    let select = |host: &str, port: u16, tenant: Option<&TenantName>| {
        let host = host::canonical(host).unwrap();
        let selected = plan.routes.select_for_tunnel(&ClientName::new("c"), tenant, (&host, port));
        selected.map(|(route, _)| route.name.as_str().to_owned())
    };
    for (host, port, expected) in [
        ("a.example", 443, Some("open")),
        ("a.example", 80, Some("open")),
        ("b.example", 443, Some("part")),
        ("y.c.example", 443, Some("closed")),
        ("x.c.example", 443, Some("closed")),
        ("d.example", 80, Some("upgrading")),
        ("d.example", 443, Some("upgrading")),
        ("b.example", 80, Some("part")),
        ("e.example", 80, Some("upgrading-part")),
        ("e.example", 443, Some("plain")),
        ("f.example", 80, Some("upgrading-whole")),
        ("f.example", 443, Some("closed-part")),
        ("g.example", 443, None),
    ] {
        assert_eq!(select(host, port, None).as_deref(), expected, "{host}:{port}");
        assert_eq!(select(host, port, Some(&TenantName::new("t"))).as_deref(), expected, "{host}:{port}");
    }
}

/// A path is ambiguous to a report-only route, although no enforced route names a path.
#[test]
fn shadow_has_the_error_of_a_path_whose_readings_differ() {
    let plan = plan(
        "[server]\nallow_anonymous = true\n[[routes]]\nname = \"any\"\nhosts = [\"*\"]\n\
         [[routes]]\nname = \"shadow\"\nhosts = [\"*\"]\npaths = [\"/in\"]\nreport_only = true\n",
    );
    let shadow = |path: &str| {
        let found = plan.routes.shadow(&ClientName::new("c"), None, &host::canonical("a.example").unwrap(), path);
        found.map(|(_, result)| result.is_ok())
    };
    assert_eq!(["/in/x", "/in/../x", "/x"].map(shadow), [Some(true), Some(false), None]);
}

/// A report-only route is the shadow of requests that it would take, ranked as if it were enforced.
#[test]
fn shadow_is_the_report_only_route_that_precedes_the_enforced_one() {
    let plan = plan(
        "[server]\nallow_anonymous = true\n[[routes]]\nname = \"exact\"\nhosts = [\"a.example\"]\n\
         [[routes]]\nname = \"part\"\nhosts = [\"b.example\"]\npaths = [\"/in\"]\n\
         [[routes]]\nname = \"any\"\nhosts = [\"*\"]\n\
         [[routes]]\nname = \"shadow\"\nhosts = [\"*.example\", \"b.example\"]\nreport_only = true\n",
    );
    let shadow = |host: &str, path: &str| {
        let found = plan.routes.shadow(&ClientName::new("c"), None, &host::canonical(host).unwrap(), path);
        found.map(|(route, _)| route.name.as_str().to_owned())
    };
    for (host, path, expected) in [
        ("a.example", "/in", None),
        ("b.example", "/in/x", None),
        ("b.example", "/out", Some("shadow")),
        ("c.example", "/", Some("shadow")),
        ("c.test", "/", None),
    ] {
        assert_eq!(shadow(host, path).as_deref(), expected, "{host}{path}");
    }
}
