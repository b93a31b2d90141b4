//! The files of this host that the kernel and the system keep, below a root folder that tests replace.
//! What do /proc, /sys and /etc say?

use std::fs;
use std::path::{Path, PathBuf};

/// The file systems of one host.
pub(in crate::cli) struct Host {
    root: PathBuf,
}

impl Host {
    /// `None`: this host itself.
    pub(in crate::cli) fn new(root: Option<&Path>) -> Self {
        Self { root: root.unwrap_or(Path::new("/")).to_owned() }
    }

    /// Returns whether checks may ask the kernel of this host. With another root they read files alone.
    pub(in crate::cli) fn is_real(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(in crate::cli) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// Returns the text of a file without the last line break. `None`: it does not exist or cannot be read.
    pub(in crate::cli) fn text(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim_end().to_owned())
    }

    /// Returns the first number of a file.
    pub(in crate::cli) fn number(&self, path: &str) -> Option<u64> {
        self.text(path)?.split_whitespace().next()?.parse().ok()
    }

    /// Returns a kernel parameter, as `sysctl NAME` prints it. A name of an interface may contain dots, and `/` then
    /// separates the parts.
    pub(in crate::cli) fn sysctl(&self, name: &str) -> Option<u64> {
        let path = if name.contains('/') { name.to_owned() } else { name.replace('.', "/") };
        self.number(&format!("proc/sys/{path}"))
    }
}
