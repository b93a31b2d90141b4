//! The admin sockets, the state directory and the logs of a configuration, read even if it has problems.
//! How does a command find the proxy and its files if the configuration is broken?

use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::Listen;
use super::files::{FILE_MAX, FileTracker};
use super::units;

/// The paths that commands need, as far as they can be read.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ControlPaths {
    /// The unix sockets of `admin.listen`.
    pub sockets: Vec<PathBuf>,
    /// `server.state`.
    pub state_dir: Option<PathBuf>,
    /// `log.deliveries`, if it is a file.
    pub delivery_log: Option<PathBuf>,
    /// `audit.file`.
    pub audit_file: Option<PathBuf>,
}

impl ControlPaths {
    pub fn read(path: &Path) -> Self {
        let content = FileTracker::new().read(path, FILE_MAX).ok();
        let text = content.and_then(|content| String::from_utf8(content.bytes).ok()).unwrap_or_default();
        let paths = Self::parse(&text);
        let resolve = |written: PathBuf| path.parent().unwrap_or(Path::new("")).join(written);
        Self {
            state_dir: paths.state_dir.map(resolve),
            delivery_log: paths.delivery_log.map(resolve),
            audit_file: paths.audit_file.map(resolve),
            sockets: paths.sockets,
        }
    }

    fn parse(text: &str) -> Self {
        let table = DeTable::parse_recoverable(text).0.into_inner();
        let listen = |table: &DeTable<'_>| -> Option<Vec<PathBuf>> {
            let list = table.get("admin")?.get_ref().as_table()?.get("listen")?.get_ref().as_array()?;
            let sockets = list.iter().filter_map(|entry| {
                let entry = entry.get_ref();
                let address = || entry.as_table()?.get("address")?.get_ref().as_str();
                match units::listen(entry.as_str().or_else(address)?) {
                    Ok(Listen::Unix(path)) => Some(path),
                    _ => None,
                }
            });
            Some(sockets.collect())
        };
        let path_at = |section: &str, key: &str| {
            table.get(section)?.get_ref().as_table()?.get(key)?.get_ref().as_str().map(PathBuf::from)
        };
        let log = |table: &DeTable<'_>| {
            let deliveries = table.get("log")?.get_ref().as_table()?.get("deliveries")?.get_ref().as_str()?;
            deliveries.strip_prefix("file:").map(PathBuf::from)
        };
        Self {
            sockets: listen(&table).unwrap_or_default(),
            state_dir: path_at("server", "state"),
            delivery_log: log(&table),
            audit_file: path_at("audit", "file"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_paths_include_the_delivery_log() {
        let log = |text: &str| ControlPaths::parse(text).delivery_log;
        assert_eq!(log("[log]\ndeliveries = \"file:/l\"\n[[routes"), Some("/l".into()));
        assert_eq!(log("[log]\ndeliveries = \"stdout\""), None);
    }

    #[test]
    fn control_paths_include_the_state_directory_and_the_audit_log() {
        let paths = ControlPaths::parse("[audit]\nfile = \"/a\"\n[server]\nstate = \"/s\"\nlisten = [");
        assert_eq!((paths.state_dir, paths.audit_file), (Some("/s".into()), Some("/a".into())));
    }

    #[test]
    fn control_paths_find_admin_sockets_in_broken_files() {
        for (text, expected) in [
            ("[admin]\nlisten = [\"127.0.0.1:1\", \"unix:/a\", \"unix:b\"]", &["/a"][..]),
            ("[server\nlisten = [1]\n[admin]\nlisten = [\"unix:/a\"]\n[[routes]\n", &["/a"]),
            ("[admin]\nlisten = [{ mode = \"0600\", address = \"unix:/a\" }, {}]", &["/a"]),
            ("", &[]),
        ] {
            let expected: Vec<PathBuf> = expected.iter().map(PathBuf::from).collect();
            assert_eq!(ControlPaths::parse(text).sockets, expected, "{text}");
        }
    }
}
