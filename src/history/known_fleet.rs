//! The file with what an instance knows of its fleet, in the folder `server.state`.
//! How many instances are live, and whose are the ranges, if the store is away when an instance starts?

use std::collections::BTreeSet;
use std::io;
use std::path::Path;

use ipnet::IpNet;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::durable;
use crate::policy::fleet::assignments::Assignments;

/// The file in the state folder. It contains no secret.
pub const FILE: &str = "fleet.json";
/// Limits the size of the file, in bytes: the most assignments, with long names of instances.
const SIZE_MAX: u64 = 2 << 20;
/// Limits the number of live instances, so that no file makes the share of an instance vanish.
pub const LIVE_MAX: u32 = 4096;
/// Limits the part of an error that may repeat text of the file.
const ERROR_MAX: usize = 200;

/// The statements of the store that an instance may need before the store answers again.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KnownFleet {
    /// The name of the fleet, `fleet.prefix`: another fleet has other instances.
    pub prefix: String,
    pub live: u32,
    pub assignments: Assignments,
    /// Ranges of this instance from which another one may still begin connections.
    pub awaited: BTreeSet<IpNet>,
}

impl KnownFleet {
    /// Reads the file. `None`: outgate has not stored any yet.
    pub fn read(state: &Path, prefix: &str, now: Timestamp) -> io::Result<Option<Self>> {
        let path = state.join(FILE);
        let read = durable::read(&path, SIZE_MAX).and_then(|bytes| {
            Self::parse(&bytes, prefix, now).map_err(|reason| io::Error::new(io::ErrorKind::InvalidData, reason))
        });
        match read {
            Ok(known) => Ok(Some(known)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(durable::with_path("read", &path, &error)),
        }
    }

    fn parse(bytes: &[u8], prefix: &str, now: Timestamp) -> Result<Self, String> {
        let parsed = serde_json::from_slice(bytes);
        let known: Self = parsed.map_err(|error| error.to_string().chars().take(ERROR_MAX).collect::<String>())?;
        known.assignments.check(now)?;
        match known.live {
            _ if known.prefix != prefix => Err("it belongs to a fleet with another `fleet.prefix`".to_owned()),
            1..=LIVE_MAX => Ok(known),
            live => Err(format!("it has {live} live instances, and the most are {LIVE_MAX}")),
        }
    }

    /// Replaces the file.
    pub fn write(&self, state: &Path) -> io::Result<()> {
        let path = state.join(FILE);
        durable::create_dir(state)
            .and_then(|()| durable::replace(&path, &serde_json::to_vec(self)?, SIZE_MAX))
            .map_err(|error| durable::with_path("write", &path, &error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn file_of_the_fleet_is_followed_only_within_bounds() {
        let state = std::env::temp_dir().join(format!("outgate-known-fleet-{}", std::process::id()));
        let (path, now) = (state.join(FILE), Timestamp::from_millisecond(1_000_000).unwrap());
        let read = || KnownFleet::read(&state, "outgate", now);
        assert_eq!(read().unwrap(), None, "an instance that starts for the first time");
        let range = "198.51.100.16/28".parse().unwrap();
        let assignments = Assignments::default().with(range, Some("egress-2"), now).unwrap();
        let known = KnownFleet { prefix: "outgate".to_owned(), live: LIVE_MAX, assignments, awaited: [range].into() };
        fs::create_dir(&state).unwrap();
        fs::write(state.join("fleet.json.tmp"), "left by a process that was killed").unwrap();
        known.write(&state).unwrap();
        assert_eq!(read().unwrap().as_ref(), Some(&known));

        let text = fs::read_to_string(&path).unwrap();
        let long = "x".repeat(100_000);
        for (text, reason) in [
            (text.replace(":4096", ":0"), "0 live instances"),
            (text.replace(":4096", ":4097"), "4097 live instances"),
            (text.replace(":4096", ":-1"), "expected u32"),
            (text.replace("\"outgate\"", "\"other\""), "`fleet.prefix`"),
            (text.replace(":1000000", ":18446744073709551615"), "ahead of the clock"),
            (text.replace(".16/28\":", ".17/28\":"), "host bits"),
            (text.replace("\"egress-2\"", "\"egress-2\",\"198.51.100.0/24\":\"a\""), "overlap"),
            (text[..text.len() / 2].to_owned(), "EOF"),
            (text.replace(":4096", &format!(":\"{long}\"")), "invalid type"),
            (String::new(), "EOF"),
            (format!("{text}{}", " ".repeat(SIZE_MAX as usize)), "not a file that outgate has written"),
        ] {
            fs::write(&path, text).unwrap();
            let error = read().unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("fleet.json") && error.len() < 1000, "{reason}: {error}");
        }
        let elsewhere = state.join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        fs::write(&elsewhere, &text).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(read().is_err(), "root may read the folder: no link is followed");
        let long = KnownFleet { prefix: "x".repeat(SIZE_MAX as usize), ..known.clone() };
        assert!(long.write(&state).is_err(), "outgate writes no file that it would not read");
        known.write(&state).unwrap();
        assert_eq!((read().unwrap(), fs::read_to_string(&elsewhere).unwrap()), (Some(known), text));
        fs::remove_dir_all(&state).unwrap();
    }
}
