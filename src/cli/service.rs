//! Finds the user and groups of the service, from its systemd unit and the files of this host.
//! Which user and groups does the service run as?

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Gid, Uid};
use rustix::thread::{set_thread_gid, set_thread_groups, set_thread_uid};

/// systemd.unit(5): a unit in an earlier directory hides those in later ones.
const UNIT_DIRS: [&str; 5] = [
    "/etc/systemd/system",
    "/run/systemd/system",
    "/usr/local/lib/systemd/system",
    "/usr/lib/systemd/system",
    "/lib/systemd/system",
];
const UNIT: &str = "outgate.service";
const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// The user and groups that the unit of the service sets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) user: Option<String>,
    group: Option<String>,
    supplementary_groups: Vec<String>,
}

/// A user with its groups.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Unit {
    /// Reads the unit and its drop-ins. `None`: this host has no unit of outgate.
    pub(super) fn read() -> Option<Self> {
        let main = UNIT_DIRS.iter().find_map(|folder| fs::read_to_string(Path::new(folder).join(UNIT)).ok())?;
        let mut unit = Self::default();
        unit.apply(&main);
        for path in drop_ins() {
            unit.apply(&fs::read_to_string(path).unwrap_or_default());
        }
        Some(unit)
    }

    /// Applies the settings of a file. A later setting replaces an earlier one. Lists grow, and an empty setting
    /// clears them.
    fn apply(&mut self, text: &str) {
        let mut is_service = false;
        for line in text.lines().map(str::trim) {
            if line.starts_with('[') {
                is_service = line == "[Service]";
            }
            let Some((key, value)) = line.split_once('=').filter(|_| is_service) else { continue };
            let value = value.trim();
            let single = Some(value).filter(|value| !value.is_empty()).map(str::to_owned);
            match key.trim_end() {
                "User" => self.user = single,
                "Group" => self.group = single,
                "SupplementaryGroups" if value.is_empty() => self.supplementary_groups.clear(),
                "SupplementaryGroups" => {
                    self.supplementary_groups.extend(value.split_whitespace().map(str::to_owned));
                }
                _ => {}
            }
        }
    }
}

/// Returns the drop-ins sorted by name. Of two with the same name, the earlier directory wins.
fn drop_ins() -> impl Iterator<Item = PathBuf> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for folder in UNIT_DIRS.iter().rev() {
        let entries = fs::read_dir(Path::new(folder).join(format!("{UNIT}.d"))).into_iter().flatten().flatten();
        let is_setting = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "conf");
        let paths = entries.map(|entry| entry.path()).filter(is_setting);
        found.extend(paths.filter_map(|path| Some((path.file_name()?.to_owned(), path))));
    }
    found.into_values()
}

impl Account {
    /// Finds a user by name or number in /etc/passwd, without network directories. The groups of `unit` apply if it
    /// runs as this user.
    pub(super) fn find(name: &str, unit: Option<&Unit>) -> Result<Self, String> {
        let read = |path| fs::read_to_string(path).map_err(|error| format!("cannot read {path}: {error}"));
        Self::find_in(&read(USERS)?, &read(GROUPS)?, name, unit)
    }

    fn find_in(users: &str, groups: &str, name: &str, unit: Option<&Unit>) -> Result<Self, String> {
        let number: Option<u32> = name.parse().ok();
        // passwd(5): name:password:uid:gid:…
        let user = |line: &str| {
            let fields: Vec<&str> = line.split(':').collect();
            let (uid, gid) = (fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?);
            (fields[0] == name || Some(uid) == number).then(|| (fields[0].to_owned(), uid, gid))
        };
        let found = users.lines().find_map(user).ok_or_else(|| format!("this host has no user \"{name}\""));
        let (name, uid, mut gid) = found?;
        // group(5): name:password:gid:members
        let all = groups.lines().filter_map(|line| {
            let fields: Vec<&str> = line.split(':').collect();
            Some((fields[0], fields.get(2)?.parse::<u32>().ok()?, fields.get(3).copied().unwrap_or_default()))
        });
        let all: Vec<_> = all.collect();
        let group_id = |wanted: &str| {
            let known = all.iter().find(|(group, ..)| *group == wanted).map(|(_, number, _)| *number);
            let number = known.or_else(|| wanted.parse().ok());
            number.ok_or_else(|| format!("this host has no group \"{wanted}\", which {UNIT} names"))
        };
        let is_member = |members: &str| members.split(',').any(|member| member == name);
        let mut group_ids: Vec<u32> =
            all.iter().filter(|(.., members)| is_member(members)).map(|(_, number, _)| *number).collect();
        if let Some(unit) = unit.filter(|unit| unit.user.as_deref() == Some(&*name)) {
            if let Some(group) = &unit.group {
                gid = group_id(group)?;
            }
            for group in &unit.supplementary_groups {
                group_ids.push(group_id(group)?);
            }
        }
        group_ids.push(gid);
        Ok(Self { name, uid, gid, groups: group_ids })
    }

    pub(super) fn is_root(&self) -> bool {
        self.uid == 0
    }

    pub(super) fn is_current(&self) -> bool {
        rustix::process::geteuid().as_raw() == self.uid
    }

    /// Makes this thread, and those that it starts, run as this user. This cannot be undone.
    pub(super) fn assume(&self) -> io::Result<()> {
        let groups: Vec<Gid> = self.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        set_thread_groups(&groups)?;
        set_thread_gid(Gid::from_raw(self.gid))?;
        Ok(set_thread_uid(Uid::from_raw(self.uid))?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unit_file_names_the_service_user_and_groups() {
        let mut unit = Unit::default();
        unit.apply("[Unit]\nUser=nobody\n[Service]\n#User=x\nUser = outgate\nSupplementaryGroups=a b\n");
        unit.apply("[Service]\nSupplementaryGroups=\nSupplementaryGroups=ssl-cert\nGroup=keys\n[Install]\nGroup=y\n");
        let (user, group) = (Some("outgate".to_owned()), Some("keys".to_owned()));
        assert_eq!(unit, Unit { user, group, supplementary_groups: vec!["ssl-cert".into()] });
    }

    #[test]
    fn account_has_the_groups_of_the_host_and_of_the_unit() {
        let users = "root:x:0:0::/:/bin/sh\noutgate:x:101:102::/:/bin/false\n";
        let groups = "root:x:0:\noutgate:x:102:\nssl-cert:x:103:postgres,outgate\nkeys:x:104:\n";
        let mut unit = Unit::default();
        unit.apply("[Service]\nUser=outgate\nSupplementaryGroups=keys 200\n");
        let find = |name, unit| Account::find_in(users, groups, name, unit).map(|found| (found.uid, found.groups));
        assert_eq!(find("outgate", None), Ok((101, vec![103, 102])));
        assert_eq!(find("101", Some(&unit)), Ok((101, vec![103, 104, 200, 102])));
        assert_eq!(find("root", Some(&unit)), Ok((0, vec![0])));
        assert_eq!(find("else", None), Err("this host has no user \"else\"".to_owned()));
    }
}
