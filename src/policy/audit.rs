//! The audit log as configured, compiled: its settings, its key, and the sinks of its records.
//! Can outgate write this audit log?

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sign;
use super::trust::{PUBLIC_TRUST, Trust};
use crate::audit::AuditSettings;
use crate::config::{Config, Located, Problem, SyslogServer};
use crate::names::TrustName;

/// A compiled section `[audit]` that has a file.
#[derive(Clone, Debug, PartialEq)]
pub struct AuditPlan {
    pub settings: AuditSettings,
    pub syslog: Vec<SyslogServer>,
    pub journald: bool,
}

/// Compiles `[audit]`. `None`: there is no audit log.
pub(super) fn compile(
    config: &Config,
    trusts: &BTreeMap<TrustName, Arc<Trust>>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<AuditPlan>> {
    let written = &config.audit;
    let signer = written.checkpoint_key.as_ref().and_then(|key| {
        let parsed = sign::parse_ed25519_key(key.expose());
        parsed
            .map_err(|(message, help)| {
                let problem = Problem::at(key.span, format!("the key of `audit.checkpoint_key` {message}"));
                problems.push(problem.help(help));
            })
            .ok()
    });
    let syslog = compile_syslog(&written.syslog, trusts, problems);
    let settings = AuditSettings {
        path: written.file.as_ref()?.value.clone(),
        origin: written.origin.clone(),
        signer: signer.map(Arc::new),
        file_size_max: written.file_size_max,
        keep: written.keep,
    };
    Some(Arc::new(AuditPlan { settings, syslog, journald: written.journald }))
}

/// Checks that the trust of each log server exists.
pub(super) fn compile_syslog(
    servers: &[Located<SyslogServer>],
    trusts: &BTreeMap<TrustName, Arc<Trust>>,
    problems: &mut Vec<Problem>,
) -> Vec<SyslogServer> {
    for server in servers {
        let trust = server.trust.as_deref().unwrap_or(PUBLIC_TRUST);
        if !trusts.contains_key(trust) {
            let problem = Problem::at(server.span, format!("there is no trust {trust:?}"));
            problems.push(problem.help(format!("add [trust.{trust}], or write the name of one that exists")));
        }
    }
    servers.iter().map(|server| server.value.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::Host;
    use crate::policy::fixture::{at, messages};

    #[test]
    fn syslog_servers_need_a_trust_that_exists() {
        let server = |trust: Option<&str>| {
            let host = Host::Name("logs.example".into());
            let url = "tls://logs.example:6514".to_owned();
            at(3, SyslogServer { url, host, port: 6514, uses_tls: true, trust: trust.map(str::to_owned) })
        };
        let mut trusts = BTreeMap::new();
        let compiled = |trusts: &_, trust| {
            let mut problems = Vec::new();
            let servers = compile_syslog(&[server(trust)], trusts, &mut problems);
            (servers.iter().map(|server| server.port).collect::<Vec<_>>(), messages(&problems))
        };
        assert_eq!(compiled(&trusts, None), (vec![6514], vec!["there is no trust \"public\"".to_owned()]));
        trusts.extend(crate::policy::trust::compile(&crate::policy::fixture::config(), &mut Vec::new()));
        assert_eq!(compiled(&trusts, None), (vec![6514], vec![]));
        assert_eq!(compiled(&trusts, Some("logs")).1, ["there is no trust \"logs\""]);
    }
}
