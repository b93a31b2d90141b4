//! What was decided when the process started.
//! Which keys wait for a restart?

use std::path::PathBuf;

use crate::config::{Config, Listen};

/// Not the whole configuration: its secrets would outlive their files.
pub(super) struct StartupSettings {
    /// Whether systemd passes sockets, for `server.listen` and for `admin.listen`.
    passed: [bool; 2],
    reuse_port: bool,
    workers: Option<usize>,
    state: Option<PathBuf>,
}

impl StartupSettings {
    pub(super) fn of(config: &Config) -> Self {
        let passed = [&config.server.listen, &config.admin.listen]
            .map(|list| list.iter().any(|bind| bind.address == Listen::Systemd));
        let workers = config.server.workers;
        Self { passed, reuse_port: config.server.reuse_port, workers, state: config.server.state.clone() }
    }

    /// The keys that differ, and wait for a restart.
    pub(super) fn needed_by(&self, after: &Self) -> Vec<String> {
        let keys = [
            ("server.listen", self.passed[0] == after.passed[0]),
            ("admin.listen", self.passed[1] == after.passed[1]),
            ("server.reuse_port", self.reuse_port == after.reuse_port),
            ("server.workers", self.workers == after.workers),
            ("server.state", self.state == after.state),
        ];
        keys.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| key.to_owned()).collect()
    }
}
