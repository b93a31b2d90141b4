//! The warnings about expiring certificates and signing keys, which are repeated once a day.
//! Which warnings are due now?

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};

use crate::panics::Mutex;
use crate::policy::expiry::Expiry;

const REPEAT_INTERVAL: SignedDuration = SignedDuration::from_hours(24);

/// The expiries, and when the log last had a warning about each.
#[derive(Default)]
pub struct ExpiryWarnings(Mutex<HashMap<Expiry, Option<Timestamp>>>);

impl ExpiryWarnings {
    /// Returns the warnings that are due. A new expiry gets none: reading its configuration has warned about it already.
    pub fn due(&self, expiries: &[Expiry], now: Timestamp) -> Vec<String> {
        let mut last_logged = self.0.lock();
        last_logged.retain(|expiry, _| expiries.contains(expiry));
        let mut due = Vec::new();
        for expiry in expiries {
            let warning = expiry.warning(now);
            let Some(last) = last_logged.get_mut(expiry) else {
                last_logged.insert(expiry.clone(), warning.map(|_| now));
                continue;
            };
            if let Some(warning) =
                warning.filter(|_| last.is_none_or(|last| now.duration_since(last) >= REPEAT_INTERVAL))
            {
                *last = Some(now);
                due.push(warning);
            }
        }
        due
    }
}

/// The problems of signing keys, and when the log last had each.
#[derive(Default)]
pub struct SignerWarnings(Mutex<LoggedProblems>);

#[derive(Default)]
struct LoggedProblems {
    /// The digest of the configuration that these problems belong to.
    digest: [u8; 32],
    last_logged: HashMap<String, Timestamp>,
}

impl SignerWarnings {
    /// Returns the problems that are due. Those that a new configuration starts with are not: reading it has reported them.
    pub fn due(&self, digest: [u8; 32], problems: Vec<String>, now: Timestamp) -> Vec<String> {
        let mut logged = self.0.lock();
        if logged.digest != digest {
            let last_logged = problems.into_iter().map(|problem| (problem, now)).collect();
            *logged = LoggedProblems { digest, last_logged };
            return Vec::new();
        }
        logged.last_logged.retain(|problem, _| problems.contains(problem));
        let last = |problem: &String| logged.last_logged.get(problem);
        let is_due = |problem: &String| last(problem).is_none_or(|last| now.duration_since(*last) >= REPEAT_INTERVAL);
        let due: Vec<String> = problems.into_iter().filter(is_due).collect();
        logged.last_logged.extend(due.iter().map(|problem| (problem.clone(), now)));
        due
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair};

    use super::*;
    use crate::config;
    use crate::policy::expiry;

    #[test]
    fn expiry_warnings_are_logged_once_a_day() {
        let mut params = CertificateParams::new([]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2026, 12, 1));
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let path = std::env::temp_dir().join(format!("outgate-expiry-warnings-{}.pem", std::process::id()));
        std::fs::write(&path, pem).unwrap();
        let text = format!("[egress.default]\nranges = [\"127.0.7.0\"]\n[trust.t]\nroots = [\"{}\"]", path.display());
        let config = config::parse(&text, &path).unwrap().config;
        std::fs::remove_file(&path).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let expiries_at = |now: &str| expiry::compile(&config, at(now), &mut Vec::new());
        let check = |steps: &[(&str, usize)]| {
            let (warnings, expiries) = (ExpiryWarnings::default(), expiries_at(steps[0].0));
            for (now, expected) in steps {
                assert_eq!(warnings.due(&expiries, at(now)).len(), *expected, "{now}");
            }
            assert!(warnings.due(&[], at("2026-12-24T00:00:00Z")).is_empty());
        };
        check(&[
            ("2026-11-16T00:00:00Z", 0),
            ("2026-11-17T00:00:00Z", 0),
            ("2026-11-17T00:00:01Z", 1), // fourteen days before
            ("2026-11-17T00:00:06Z", 0),
            ("2026-11-18T00:00:00Z", 0),
            ("2026-11-18T00:00:01Z", 1),
            ("2026-12-02T00:00:00Z", 1),
            ("2026-12-02T23:59:59Z", 0),
        ]);
        // Reading the configuration has warned already.
        check(&[("2026-11-20T00:00:00Z", 0), ("2026-11-20T23:59:59Z", 0), ("2026-11-21T00:00:00Z", 1)]);
    }

    #[test]
    fn signer_warnings_are_logged_when_they_appear_and_once_a_day() {
        let (warnings, start) = (SignerWarnings::default(), Timestamp::UNIX_EPOCH);
        let due = |hour: i64, digest: u8, problems: &[&str]| {
            let problems = problems.iter().map(|problem| (*problem).to_owned()).collect();
            warnings.due([digest; 32], problems, start + SignedDuration::from_hours(hour)).len()
        };
        assert_eq!(due(0, 1, &["a"]), 0, "reading the configuration has reported it");
        assert_eq!([due(1, 1, &["a", "b"]), due(2, 1, &["a", "b"])], [1, 0]);
        assert_eq!([due(24, 1, &["a", "b"]), due(25, 1, &["a", "b"]), due(26, 1, &["a", "b"])], [1, 1, 0]);
        assert_eq!([due(27, 1, &[]), due(28, 1, &["b"])], [0, 1], "the problem had gone meanwhile");
        assert_eq!(due(29, 2, &["b"]), 0);
    }
}
