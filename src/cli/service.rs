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
    "etc/systemd/system",
    "run/systemd/system",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];
const UNIT: &str = "outgate.service";
const USERS: &str = "/etc/passwd";
const GROUPS: &str = "/etc/group";

/// The section `[Service]` of the unit, with its drop-ins.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) user: Option<String>,
    group: Option<String>,
    supplementary_groups: Vec<String>,
    pub(super) file: PathBuf,
    /// The file of the package, which another file hides.
    pub(super) hides: Option<PathBuf>,
    /// Every setting, in order.
    settings: Vec<(String, String)>,
    /// The number of settings in drop-ins.
    pub(super) overrides: usize,
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
        Self::read_below(Path::new("/"))
    }

    /// Reads the unit of the host whose root is this folder.
    pub(super) fn read_below(root: &Path) -> Option<Self> {
        let file = |folder: &&str| {
            let path = root.join(folder).join(UNIT);
            Some((fs::read_to_string(&path).ok()?, path))
        };
        let mut files = UNIT_DIRS.iter().filter_map(file);
        let (main, path) = files.next()?;
        // On a merged /usr, /lib and /usr/lib are one folder, and a package writes to one of them.
        let hides = files.next().map(|(_, hidden)| hidden).filter(|_| path.starts_with(root.join("etc")));
        let mut unit = Self { file: path, hides, ..Self::default() };
        unit.apply(&main);
        let of_main = unit.settings.len();
        for path in drop_ins(root) {
            unit.apply(&fs::read_to_string(path).unwrap_or_default());
        }
        unit.overrides = unit.settings.len() - of_main;
        Some(unit)
    }

    /// Returns the value of a setting that takes one value: the last one.
    pub(super) fn last(&self, key: &str) -> Option<&str> {
        self.values(key).next_back()
    }

    /// Returns the values of a setting that is a list. An empty value clears what came before.
    pub(super) fn list(&self, key: &str) -> String {
        let values: Vec<&str> = self.values(key).collect();
        values.rsplit(|value| value.is_empty()).next().unwrap_or_default().join(" ")
    }

    fn values<'u>(&'u self, key: &str) -> impl DoubleEndedIterator<Item = &'u str> {
        self.settings.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Returns the number of files that the service may open (`LimitNOFILE=SOFT:HARD`); outgate raises the soft limit.
    /// `None`: the unit sets no number.
    pub(super) fn file_limit(&self) -> Option<u64> {
        let limit = self.last("LimitNOFILE")?;
        limit.rsplit(':').next()?.parse().ok()
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
            let (key, value) = (key.trim_end(), value.trim());
            self.settings.push((key.to_owned(), value.to_owned()));
            let single = Some(value).filter(|value| !value.is_empty()).map(str::to_owned);
            match key {
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
fn drop_ins(root: &Path) -> impl Iterator<Item = PathBuf> {
    let mut found: BTreeMap<OsString, PathBuf> = BTreeMap::new();
    for folder in UNIT_DIRS.iter().rev() {
        let entries = fs::read_dir(root.join(folder).join(format!("{UNIT}.d"))).into_iter().flatten().flatten();
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

    /// Returns whether the account has the permissions `needed` (4 read, 2 write, 1 search) on a file with this mode and
    /// owner, without access control lists.
    pub(super) fn may(&self, needed: u32, mode: u32, uid: u32, gid: u32) -> bool {
        let granted = match () {
            () if self.uid == uid => mode >> 6,
            () if self.groups.contains(&gid) => mode >> 3,
            () => mode,
        };
        self.is_root() || granted & needed == needed
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
        assert_eq!((unit.user.as_deref(), unit.group.as_deref()), (Some("outgate"), Some("keys")));
        assert_eq!(unit.supplementary_groups, ["ssl-cert"]);
        assert_eq!((unit.list("SupplementaryGroups"), unit.last("User")), ("ssl-cert".to_owned(), Some("outgate")));
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
