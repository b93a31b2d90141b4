//! Restricts the process at its start: no capabilities, no new privileges, no core dump, no programs, few writes.
//! What can code that takes over the process still do?
//!
//! The kernel restricts single threads, and a thread inherits from the one that starts it. So all this happens on the
//! first thread, before any other exists, and the log lines wait in [`Sandbox`].

mod capabilities;
mod files;

use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{CapabilitySet, set_no_new_privs};
use tracing::{info, warn};

pub use self::files::problems_of_unwritable_paths;
use crate::config::{Config, unlocked_secret_bytes};
use crate::net::listen::ReservedPorts;

/// The restrictions of this process, and the errors of those that the kernel refused.
pub struct Sandbox {
    errors: Vec<String>,
    /// The restriction of files, in words.
    files: Option<String>,
}

impl Sandbox {
    /// Restricts everything that does not depend on the configuration. A port below 1024 still needs its capability.
    pub fn enter() -> Self {
        let mut sandbox = Self { errors: Vec::new(), files: None };
        sandbox.require("keep capabilities from the process", capabilities::keep(CapabilitySet::NET_BIND_SERVICE));
        sandbox.require("set no_new_privs", set_no_new_privs(true));
        // Memory has keys. A process that is not dumpable cannot be traced by other processes of its user either.
        sandbox.require("prevent core dumps", set_dumpable_behavior(DumpableBehavior::NotDumpable));
        let no_core = Rlimit { current: Some(0), maximum: Some(0) };
        sandbox.require("set the limit of core dumps to 0", setrlimit(Resource::Core, no_core));
        sandbox
    }

    /// Binds the ports that need a capability, drops it, and restricts files by what the configuration names.
    pub fn close(&mut self, config: &Config) -> ReservedPorts {
        let reserved = match capabilities::has(CapabilitySet::NET_BIND_SERVICE) {
            true => ReservedPorts::bind(config),
            false => ReservedPorts::default(),
        };
        self.require("drop the capability CAP_NET_BIND_SERVICE", capabilities::keep(CapabilitySet::empty()));
        match files::restrict(config) {
            Ok(outcome) => self.files = Some(outcome),
            Err(error) => self.errors.push(format!("cannot restrict its files with Landlock: {error}")),
        }
        reserved
    }

    /// Logs the restrictions.
    pub fn announce(&self) {
        for error in &self.errors {
            warn!("sandbox: outgate {error}; it continues, with the rights that its user has");
        }
        if let Some(files) = &self.files {
            info!("sandbox: {files}");
        }
        if let unlocked @ 1.. = unlocked_secret_bytes() {
            warn!(
                "{} KiB of secrets are in memory that the kernel may swap (RLIMIT_MEMLOCK); raise LimitMEMLOCK= of the \
                 systemd unit by as much",
                unlocked >> 10
            );
        }
    }

    fn require(&mut self, what: &str, outcome: rustix::io::Result<()>) {
        if let Err(error) = outcome {
            self.errors.push(format!("cannot {what}: {error}"));
        }
    }
}
