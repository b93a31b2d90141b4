//! The settings that take effect only at the start of the process.
//! Which changed keys require a restart?

use std::path::PathBuf;

use crate::config::{self, Config, Listen};

/// The startup settings of a configuration. The rest is not retained: its secrets would outlive their files.
pub(super) struct StartupSettings {
    /// Whether systemd passes sockets for `server.listen` and for `admin.listen`.
    systemd_sockets: [bool; 2],
    reuse_port: bool,
    workers: Option<usize>,
    state: Option<PathBuf>,
    fleet: [u8; 32],
}

impl StartupSettings {
    pub(super) fn from_config(config: &Config) -> Self {
        let systemd_sockets = [&config.server.listen, &config.admin.listen]
            .map(|list| list.iter().any(|bind| bind.address == Listen::Systemd));
        let workers = config.server.workers;
        let fleet = config.fleet.as_ref().map(config::Fleet::fingerprint).unwrap_or_default();
        let (reuse_port, state) = (config.server.reuse_port, config.server.state.clone());
        Self { systemd_sockets, reuse_port, workers, state, fleet }
    }

    /// Returns the keys that differ in `after`, and thus require a restart.
    pub(super) fn restart_required_keys(&self, after: &Self) -> Vec<String> {
        let keys = [
            ("server.listen", self.systemd_sockets[0] == after.systemd_sockets[0]),
            ("admin.listen", self.systemd_sockets[1] == after.systemd_sockets[1]),
            ("server.reuse_port", self.reuse_port == after.reuse_port),
            ("server.workers", self.workers == after.workers),
            ("server.state", self.state == after.state),
            ("fleet", self.fleet == after.fleet),
        ];
        keys.into_iter().filter(|(_, is_same)| !is_same).map(|(key, _)| key.to_owned()).collect()
    }
}
