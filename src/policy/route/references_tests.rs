//! Tests of the sections that a route names: its pool, signers, credential and limits.
//! Does a route report what it must not combine, at the right place?

use super::compile_tests::{compile, github, with_route};
use crate::config::{Authentication, Config, ConnectPolicy, Credential, PlaintextPolicy, Problem, Secret};
use crate::names::{CredentialName, PoolName, SignerName};
use crate::policy::fixture::{at, messages, pool};

#[test]
fn route_credential_reports_where_it_would_leak() {
    type Change = fn(&mut Config);
    let plain: Change = |c| c.routes[0].value.plaintext.value = PlaintextPolicy::Allow;
    let tunnel: Change = |c| c.routes[0].value.connect = Some(at(3, ConnectPolicy::Tunnel));
    let table: &[(Change, &[&str])] = &[
        (|_| {}, &[]),
        (
            |c| c.routes[0].value.credential = Some(at(1, "kye".into())),
            &["no credential is named \"kye\"", "warning: no route uses the credential key"],
        ),
        (
            |c| c.routes[0].value.hosts[0].value = "*".into(),
            &["warning: outgate sends the credential key to every host that receives a webhook"],
        ),
        (tunnel, &["warning: outgate adds no credential inside a tunnel"]),
        (
            plain,
            &[
                "the credential key would be sent in plaintext, and anyone on the path could read it",
                "warning: outgate may send webhooks in plaintext, to targets whose identity is not verified",
            ],
        ),
        (
            |c| {
                c.routes[0].value.plaintext.value = PlaintextPolicy::Allow;
                c.credentials.get_mut("key").unwrap().value.plaintext = true;
            },
            &[
                "warning: the credential key may be sent in plaintext, and anyone on the path can read it",
                "warning: outgate may send webhooks in plaintext, to targets whose identity is not verified",
            ],
        ),
        (
            |c| {
                c.signers.insert(SignerName::new("github"), github());
                c.routes[0].value.sign = vec![at(4, "github".into())];
            },
            &["the credential key and the signer github write the same header, x-hub-signature-256"],
        ),
    ];
    for (change, expected) in table {
        let mut config = with_route(|route| {
            route.credential = Some(at(1, "key".into()));
            (route.sign, route.limits) = (vec![], vec![]);
        });
        (config.signers, config.limits) = Default::default();
        let name = at(2, "X-Hub-Signature-256".into());
        let value = at(2, Secret::new(b"k".to_vec()));
        let credential = Credential { scheme: Authentication::Header { name, value }, plaintext: false };
        config.credentials.insert(CredentialName::new("key"), at(2, credential));
        change(&mut config);
        assert_eq!(messages(&compile(&config).1), *expected);
    }
}

#[test]
fn route_with_an_unknown_name_gets_a_suggestion() {
    for (name, help) in [("per-hots", "did you mean \"per-host\"?"), ("else", "add [limits.else]")] {
        let (_, problems) = compile(&with_route(|route| route.limits.push(at(1, name.into()))));
        assert_eq!(problems[0].help.as_deref(), Some(help));
    }
    let mut config = with_route(|_| {});
    config.egress = [(PoolName::new("eu"), at(2, pool()))].into();
    let expected = "the route \"acme\" names no egress pool, and no pool is named \"default\"";
    assert_eq!(messages(&compile(&config).1), [expected, "warning: no route uses the egress pool eu"]);
}

#[test]
fn route_does_not_repeat_problems_of_what_it_names() {
    let mut config = with_route(|_| {});
    config.signers.get_mut("platform").unwrap().value.scheme.value = "x".into();
    assert_eq!(messages(&compile(&config).1), ["no scheme is named \"x\""]);
}

/// A pool with a problem of its own is not missing.
#[test]
fn route_does_not_miss_a_default_pool_that_has_a_problem() {
    let mut config = with_route(|_| {});
    config.egress.get_mut("default").unwrap().value.ranges.clear();
    assert_eq!(messages(&compile(&config).1), Vec::<String>::new());
}

#[test]
fn route_is_for_tenants_if_it_names_some() {
    for (tenants, expected) in [(vec![], false), (vec![at(120, "acme".to_owned())], true)] {
        let (routes, _) = compile(&with_route(|route| route.tenants = tenants.clone()));
        assert_eq!(routes.routes[0].is_for_tenants, expected);
    }
}

#[test]
fn signers_of_the_same_headers_are_reported_at_the_second_one() {
    let mut config = with_route(|route| route.sign = vec![at(110, "platform".into()), at(120, "other".into())]);
    config.signers.insert(SignerName::new("other"), config.signers["platform"].clone());
    let (_, problems) = compile(&config);
    let found: Vec<_> =
        problems.iter().map(|problem| (problem.span.unwrap().start, problem.message.as_str())).collect();
    assert_eq!(found, [(120, "the signers platform and other write the same headers")]);
}

/// A route for every host, whose receivers share one secret.
#[test]
fn signer_with_a_shared_secret_is_reported_on_a_route_for_every_host() {
    let warned = |host: &str| {
        let (_, problems) = compile(&with_route(|route| route.hosts = vec![at(130, host.to_owned())]));
        let place = |problem: Problem| (problem.span.unwrap().start, problem.message);
        problems.into_iter().map(place).collect::<Vec<_>>()
    };
    let message = "every receiver on this route shares the secret of the signer platform";
    assert_eq!(warned("*"), [(130, message.to_owned())]);
    assert_eq!(warned("*.acme.example"), []);
}
