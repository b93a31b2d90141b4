//! The checks of the installation: the configuration, permissions, certificates, the unit, SELinux and AppArmor.
//! May the service read what it needs, does its unit let it work, and what expires soon?

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use super::super::service::Account;
use super::Examination;
use super::finding::Finding;
use crate::config::{self, Problem, Severity, WarningCode};
use crate::names::pluralize;

/// The bytes at the end of a log of the kernel that are searched for denials.
const LOG_TAIL: u64 = 1 << 20;
/// Logs that may have denials: of the audit daemon, and of syslog.
const DENIAL_LOGS: [&str; 3] = ["var/log/audit/audit.log", "var/log/kern.log", "var/log/syslog"];

/// A setting that breaks or weakens the service: the key, the values that do, and the consequence.
type Override = (&'static str, fn(&str) -> bool, &'static str);
const OVERRIDES: &[Override] = &[
    ("PrivateNetwork", is_yes, "outgate reaches no network"),
    (
        "IPAddressDeny",
        |value| !value.is_empty(),
        "the kernel drops packets to these targets, which outgate reports as timeouts",
    ),
    (
        "ProcSubset",
        |value| value == "pid",
        "outgate cannot read the range of ports, and a source address serves fewer connections",
    ),
    ("User", |value| value == "root" || value == "0", "outgate runs as root"),
    ("DynamicUser", is_yes, "outgate cannot read keys that belong to its group"),
    ("NoNewPrivileges", is_no, "a set-user-id program may give privileges back"),
    ("ProtectSystem", is_no, "outgate may write to the whole file system"),
    ("LimitCORE", |value| value != "0", "a core dump would hold signing keys"),
    ("Restart", is_no, "systemd does not restart outgate after a failure"),
];
/// The address families that the service needs.
const FAMILIES: [&str; 4] = ["AF_INET", "AF_INET6", "AF_UNIX", "AF_NETLINK"];

fn is_yes(value: &str) -> bool {
    ["yes", "true", "on", "1"].contains(&value)
}

fn is_no(value: &str) -> bool {
    ["no", "false", "off", "0"].contains(&value)
}

/// Returns the problems and warnings that `outgate check` reports, without those of certificates.
pub(super) fn configuration(subject: &Examination<'_>) -> Vec<Finding> {
    let (problems, sources) = match subject.configuration {
        Ok(valid) => (&valid.warnings, &valid.config.sources),
        Err(invalid) => (&invalid.problems, &invalid.sources),
    };
    let finding = |problem: &Problem| {
        let fix = problem.help.clone().unwrap_or_else(|| "outgate check".to_owned());
        let line = config::to_log_lines(&[Problem { help: None, ..problem.clone() }], sources).concat();
        match problem.severity {
            Severity::Warning => Finding::warning(line, fix),
            Severity::Problem | Severity::Contained => Finding::problem(line, fix),
        }
    };
    let is_expiry = |problem: &&Problem| problem.code == Some(WarningCode::ExpiresSoon);
    let found: Vec<_> = problems.iter().filter(|problem| !is_expiry(problem)).map(finding).collect();
    if found.is_empty() { vec![Finding::ok("outgate would adopt the configuration")] } else { found }
}

/// Checks that only the service and administrators can read and change the files of the configuration.
pub(super) fn permissions(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(config) = subject.config() else { return Vec::new() };
    let user = subject.unit.as_ref().and_then(|unit| unit.user.as_deref());
    let account = user.and_then(|user| Account::find(user, subject.unit.as_ref()).ok());
    let mut findings = Vec::new();
    for path in &config.files {
        let Ok(found) = fs::metadata(path) else { continue };
        let (mode, name) = (found.mode(), path.display());
        if mode & 0o002 != 0 && mode & 0o1000 == 0 {
            let message = format!("every user of this host can change {name}, and so which webhooks outgate sends");
            findings.push(Finding::problem(message, format!("chmod o-w {name}")));
        }
        let needed = if found.is_dir() { 0o5 } else { 0o4 };
        if let Some(account) = account.as_ref().filter(|account| !account.may(needed, mode, found.uid(), found.gid())) {
            let message = format!("the user {} of outgate.service cannot read {name}", account.name);
            let fix = format!("chgrp {group} {name} && chmod g+rX {name}", group = account.name);
            findings.push(Finding::problem(message, fix));
        }
    }
    if findings.is_empty() {
        let count = pluralize(config.files.len(), "file");
        findings.push(Finding::ok(format!("the permissions of {count} of the configuration are right")));
    }
    findings
}

/// Checks the certificates and revocation lists in files.
pub(super) fn certificates(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(plan) = subject.plan() else { return Vec::new() };
    let expiries = plan.expiries.iter().filter_map(|expiry| Some((expiry, expiry.warning(subject.now)?)));
    let findings: Vec<_> = expiries
        .map(|(expiry, message)| match expiry.expires_at < subject.now {
            true => Finding::problem(message, expiry.help()),
            false => Finding::warning(message, expiry.help()),
        })
        .collect();
    let none = || Finding::ok(format!("of {} certificates and lists in files none expires soon", plan.expiries.len()));
    if findings.is_empty() { vec![none()] } else { findings }
}

/// Checks the settings of drop-ins, and that no copy hides the unit of the package.
pub(super) fn unit(subject: &Examination<'_>) -> Vec<Finding> {
    let Some(unit) = &subject.unit else { return vec![Finding::ok("this host has no outgate.service")] };
    let mut findings = Vec::new();
    if let Some(hidden) = &unit.hides {
        let message =
            format!("{} replaces {}: updates of the package do not change it", unit.file.display(), hidden.display());
        let fix = format!(
            "rm {} && systemctl daemon-reload; write changes with: systemctl edit outgate",
            unit.file.display()
        );
        findings.push(Finding::warning(message, fix));
    }
    let remove =
        |key: &str| format!("systemctl edit outgate, without the line {key}=; then: systemctl restart outgate");
    for (key, is_wrong, consequence) in OVERRIDES {
        if let Some(value) = unit.last(key).filter(|value| is_wrong(value)) {
            let message = format!("outgate.service has {key}={value}: {consequence}");
            findings.push(Finding::warning(message, remove(key)));
        }
    }
    let families = unit.list("RestrictAddressFamilies");
    let lost: Vec<_> = FAMILIES.iter().filter(|family| !families.split(' ').any(|have| have == **family)).collect();
    if !families.is_empty() && !lost.is_empty() && !families.starts_with('~') {
        let lost = lost.into_iter().copied().collect::<Vec<_>>().join(" ");
        let message = format!("RestrictAddressFamilies= of outgate.service lacks {lost}: outgate cannot work without");
        let fix = format!("systemctl edit outgate, with the lines [Service] and RestrictAddressFamilies={lost}");
        findings.push(Finding::problem(message, fix));
    }
    if findings.is_empty() {
        let count = pluralize(unit.overrides, "setting");
        findings.push(Finding::ok(format!("{count} in drop-ins of outgate.service, and none is known to harm")));
    }
    findings
}

/// Checks whether SELinux or AppArmor has denied something to outgate.
pub(super) fn security_modules(subject: &Examination<'_>) -> Vec<Finding> {
    let is_selinux = subject.host.number("sys/fs/selinux/enforce") == Some(1);
    let profiles = subject.host.text("sys/kernel/security/apparmor/profiles").unwrap_or_default();
    let has_profile = profiles.lines().any(|line| line.contains("outgate") && line.contains("(enforce)"));
    let denial = |line: &str| {
        line.contains("outgate") && (line.contains("avc:  denied") || line.contains("apparmor=\"DENIED\""))
    };
    let logs = DENIAL_LOGS.iter().filter_map(|log| tail(&subject.host.path(log)));
    let denied: Vec<String> = logs.flat_map(|log| log.lines().rfind(|line| denial(line)).map(str::to_owned)).collect();
    if let Some(line) = denied.first() {
        let fix = match line.contains("apparmor") {
            true => "aa-logprof; or, to allow everything for now: aa-complain /usr/bin/outgate",
            false => {
                "restorecon -Rv /etc/outgate /var/lib/outgate /var/log/outgate; then: ausearch -m AVC -c outgate | audit2why"
            }
        };
        return vec![Finding::problem(format!("a security module has denied outgate something: {line}"), fix)];
    }
    let active = match (is_selinux, has_profile) {
        (false, false) => "neither SELinux nor AppArmor confines outgate",
        (true, _) => "SELinux is enforcing, and its logs have no denial for outgate",
        (false, true) => "AppArmor confines outgate, and its logs have no denial for it",
    };
    vec![Finding::ok(active)]
}

/// Returns the end of a log. `None`: it does not exist or cannot be read.
pub(in crate::cli) fn tail(path: &Path) -> Option<String> {
    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut bytes = Vec::new();
    file.take(LOG_TAIL).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
