//! What runs out, said again once a day until somebody sees to it.
//! What has to be said now?

use std::collections::HashMap;

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use crate::policy::expiry::Expiry;

const AGAIN: SignedDuration = SignedDuration::from_hours(24);

/// When each was last spoken of.
#[derive(Default)]
pub struct ExpiryWarnings(Mutex<HashMap<Expiry, Option<Timestamp>>>);

impl ExpiryWarnings {
    /// The warnings that are due. What is met for the first time was warned about where its configuration was read.
    pub fn due(&self, expiries: &[Expiry], now: Timestamp) -> Vec<String> {
        let mut spoken = self.0.lock();
        spoken.retain(|expiry, _| expiries.contains(expiry));
        let mut due = Vec::new();
        for expiry in expiries {
            let warning = expiry.warning(now);
            let Some(last) = spoken.get_mut(expiry) else {
                spoken.insert(expiry.clone(), warning.map(|_| now));
                continue;
            };
            if let Some(warning) = warning.filter(|_| last.is_none_or(|last| now.duration_since(last) >= AGAIN)) {
                *last = Some(now);
                due.push(warning);
            }
        }
        due
    }
}

/// What is wrong with signers' keys, by itself and as time goes on.
#[derive(Default)]
pub struct SignerWarnings(Mutex<LoggedProblems>);

#[derive(Default)]
struct LoggedProblems {
    /// Of the configuration that was last asked about.
    digest: [u8; 32],
    when: HashMap<String, Timestamp>,
}

impl SignerWarnings {
    /// What is due of `faults`. What a configuration began with was told where it was read.
    pub fn due(&self, digest: [u8; 32], faults: Vec<String>, now: Timestamp) -> Vec<String> {
        let mut spoken = self.0.lock();
        if spoken.digest != digest {
            *spoken = LoggedProblems { digest, when: faults.into_iter().map(|fault| (fault, now)).collect() };
            return Vec::new();
        }
        spoken.when.retain(|fault, _| faults.contains(fault));
        let is_due = |fault: &String| spoken.when.get(fault).is_none_or(|last| now.duration_since(*last) >= AGAIN);
        let due: Vec<String> = faults.into_iter().filter(is_due).collect();
        spoken.when.extend(due.iter().map(|fault| (fault.clone(), now)));
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
    fn each_is_said_once_a_day() {
        let mut params = CertificateParams::new([]).unwrap();
        (params.not_before, params.not_after) = (rcgen::date_time_ymd(2026, 1, 1), rcgen::date_time_ymd(2026, 12, 1));
        let pem = params.self_signed(&KeyPair::generate().unwrap()).unwrap().pem();
        let path = std::env::temp_dir().join(format!("outgate-reminders-{}.pem", std::process::id()));
        std::fs::write(&path, pem).unwrap();
        let text = format!("[egress.default]\nranges = [\"127.0.7.0\"]\n[trust.t]\nroots = [\"{}\"]", path.display());
        let config = config::parse(&text, &path).unwrap().config;
        std::fs::remove_file(&path).unwrap();
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let of = |now: &str| expiry::compile(&config, at(now), &mut Vec::new());
        let story = |steps: &[(&str, usize)]| {
            let (reminders, expiries) = (ExpiryWarnings::default(), of(steps[0].0));
            for (now, said) in steps {
                assert_eq!(reminders.due(&expiries, at(now)).len(), *said, "{now}");
            }
            assert!(reminders.due(&[], at("2026-12-24T00:00:00Z")).is_empty());
        };
        story(&[
            ("2026-11-16T00:00:00Z", 0),
            ("2026-11-17T00:00:00Z", 0),
            ("2026-11-17T00:00:01Z", 1), // fourteen days before
            ("2026-11-17T00:00:06Z", 0),
            ("2026-11-18T00:00:00Z", 0),
            ("2026-11-18T00:00:01Z", 1),
            ("2026-12-02T00:00:00Z", 1),
            ("2026-12-02T23:59:59Z", 0),
        ]);
        // Said where the configuration was read.
        story(&[("2026-11-20T00:00:00Z", 0), ("2026-11-20T23:59:59Z", 0), ("2026-11-21T00:00:00Z", 1)]);
    }

    #[test]
    fn what_time_brings_is_said_when_it_comes_and_once_a_day() {
        let (signing, start) = (SignerWarnings::default(), Timestamp::UNIX_EPOCH);
        let said = |hour: i64, digest: u8, faults: &[&str]| {
            let faults = faults.iter().map(|fault| (*fault).to_owned()).collect();
            signing.due([digest; 32], faults, start + SignedDuration::from_hours(hour)).len()
        };
        assert_eq!(said(0, 1, &["a"]), 0, "told where it was read");
        assert_eq!([said(1, 1, &["a", "b"]), said(2, 1, &["a", "b"])], [1, 0]);
        assert_eq!([said(24, 1, &["a", "b"]), said(25, 1, &["a", "b"]), said(26, 1, &["a", "b"])], [1, 1, 0]);
        assert_eq!([said(27, 1, &[]), said(28, 1, &["b"])], [0, 1], "it had gone");
        assert_eq!(said(29, 2, &["b"]), 0);
    }
}
