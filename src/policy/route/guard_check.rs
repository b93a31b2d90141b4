//! Route hosts that the guard refuses in every case.
//! Can a webhook reach this host of a route?

use super::Routes;
use crate::config::WarningCode;
use crate::config::{Config, Problem};
use crate::host::HostPattern;
use crate::names::Host;
use crate::policy::guard::{Forbidden, Guard};

/// Warns about hosts that the guard refuses. This is no problem, so that an operator can deny an address in a hurry
/// without a change of its route.
pub fn check_guard(config: &Config, routes: &Routes, guard: &Guard, problems: &mut Vec<Problem>) {
    let denied = |pattern: &HostPattern| match pattern {
        HostPattern::Exact(host) => guard.denies(host),
        HostPattern::Subdomains(parent) => guard.denies_subdomains(parent),
        HostPattern::Any => None,
    };
    // There may be a hundred thousand hosts and rarely a refused one, so the compiled tables are checked before the
    // text is searched.
    let has_denied_host = |routes: &Routes| {
        routes.exact.keys().any(|host| guard.denies(host).is_some())
            || routes.subdomains.keys().any(|parent| guard.denies_subdomains(parent).is_some())
    };
    if !has_denied_host(routes) && !routes.shadows.as_deref().is_some_and(has_denied_host) {
        return;
    }
    for written in config.routes.iter().flat_map(|route| &route.hosts) {
        let Ok(pattern) = HostPattern::parse(written) else { continue };
        let warn = |reason: String| {
            Problem::warning(
                WarningCode::GuardedHost,
                Some(written.span),
                format!("the guard refuses every delivery to this host: {reason}"),
            )
        };
        problems.extend(denied(&pattern).map(|forbidden| match forbidden {
            Forbidden::Address { address, rule } => {
                let problem = match pattern {
                    HostPattern::Exact(Host::Ip(_)) => warn(rule),
                    _ => warn(format!("resolver.hosts has {address}: {rule}")),
                };
                match config.guard.deny.iter().find(|deny| !deny.report_only && deny.cidr.contains(&address)) {
                    Some(deny) => problem.related(deny.span, "denied here"),
                    None => problem.help("guard.allow makes exceptions for addresses"),
                }
            }
            Forbidden::Name | Forbidden::Port(_) | Forbidden::LoopsBack => {
                let help = "to permit it, give it an address in resolver.hosts and permit that address in guard.allow";
                warn("its name is reserved and never public".to_owned()).help(help)
            }
        }));
    }
}

#[cfg(test)]
mod tests {
    use crate::config::{DeniedNetwork, Problem};
    use crate::policy::fixture::{at, config, route};

    /// Returns the warnings about a route for this host, each with the place of the rule that denies it.
    fn warnings(host: &str, is_shadow: bool) -> Vec<(String, Option<u32>)> {
        let mut config = config();
        config.server.allow_anonymous.value = true;
        let network = |cidr: &str, report_only| DeniedNetwork { cidr: cidr.parse().unwrap(), report_only };
        let denied = [("8.8.8.0/25", true), ("1.0.0.0/24", false), ("8.8.8.0/24", false), ("9.9.9.0/24", true)];
        config.guard.deny = (50..).zip(denied).map(|(place, (cidr, only))| at(place, network(cidr, only))).collect();
        config.guard.allow = vec![at(60, "10.0.1.0/24".parse().unwrap())];
        for (name, address) in [("a.internal", "10.0.0.1"), ("b.test", "10.0.1.1"), ("c.acme.com", "8.8.8.8")] {
            let addresses = vec!["1.1.1.1".parse().unwrap(), address.parse().unwrap()];
            config.resolver.hosts.insert(crate::host::canonical(name).unwrap(), addresses);
        }
        let mut route = route(100, "r", host);
        route.value.report_only = is_shadow;
        config.routes.push(route);
        let problems = match crate::policy::compile(&config, jiff::Timestamp::UNIX_EPOCH) {
            Ok((_, warnings)) => warnings,
            Err(problems) => panic!("{problems:?}"),
        };
        let prefix = "the guard refuses every delivery to this host: ";
        let reason = |problem: &Problem| {
            let reason = problem.message.strip_prefix(prefix)?.to_owned();
            Some((reason, problem.related.as_ref().map(|(span, _)| span.start)))
        };
        problems.iter().filter_map(reason).collect()
    }

    #[test]
    fn route_host_denied_by_the_guard_is_reported_with_its_rule() {
        let reserved = Some("its name is reserved and never public");
        for (host, expected) in [
            ("localhost", reserved),
            ("x.internal", reserved),
            ("*.home.arpa", reserved),
            ("192.168.1.1", Some("Private-Use, RFC 1918")),
            ("8.8.8.8", Some("guard.deny 8.8.8.0/24")),
            ("127.0.7.1", Some("Loopback, RFC 1122")),
            ("a.internal", Some("resolver.hosts has 10.0.0.1: Private-Use, RFC 1918")),
            ("c.acme.com", Some("resolver.hosts has 8.8.8.8: guard.deny 8.8.8.0/24")),
            // The operator configured addresses for names below it.
            ("*.internal", None),
            ("b.test", None),
            ("10.0.1.7", None),
            ("9.9.9.9", None),
            ("hooks.acme.com", None),
            ("*.acme.com", None),
            ("*", None),
        ] {
            let rule = expected.filter(|reason| reason.contains("guard.deny")).map(|_| 52);
            let expected: Vec<_> = expected.into_iter().map(|reason| (reason.to_owned(), rule)).collect();
            assert_eq!(warnings(host, false), expected, "{host}");
            assert_eq!(warnings(host, true), expected, "{host}, as a shadow");
        }
    }
}
