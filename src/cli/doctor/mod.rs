//! `outgate doctor`: what is wrong on this host, in plain words, with the command that corrects it.
//! Which checks are there, and what does each find?

mod egress;
mod finding;
mod host;
mod installation;
mod store;
mod system;
#[cfg(test)]
mod tests;
mod uplink;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use jiff::Timestamp;

use super::service::Unit;
use super::{InvalidConfig, ValidConfig, load_config};
use crate::config::Config;
use crate::policy::Plan;
use crate::state::upstreams::sources::{Sources, SourcesSnapshot};
pub(super) use finding::{Finding, exit_code, print_findings};
pub(super) use host::Host;
pub(super) use installation::tail;
use uplink::Uplink;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate doctor
  sudo outgate doctor --json | jq '.[] | select(.level != \"ok\")'

The command changes nothing on this host. It asks each name server one question. With [fleet], it connects to the store and
writes a few keys there, which end within seconds. It opens no other connection. Run it as root: some files and logs can only be
read by root.

Exit code 0: no problem, perhaps warnings. 1: problems; each has the command that corrects it. 2: wrong usage.")]
pub(super) struct Doctor {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the findings as a JSON array
    #[arg(long)]
    json: bool,
    /// Read /proc, /sys, /etc and /var below this folder, and ask the kernel nothing
    #[arg(long, value_name = "DIR", hide = true)]
    root: Option<PathBuf>,
}

/// A check, and its name in the output.
#[derive(Clone, Copy)]
pub(super) struct Check(&'static str, fn(&Examination<'_>) -> Vec<Finding>);

/// The checks of source addresses.
pub(super) const EGRESS_CHECKS: &[Check] = &[
    Check("addresses", egress::addresses),
    Check("routes", egress::routes),
    Check("rp_filter", egress::rp_filter),
    Check("conntrack", egress::conntrack),
    Check("ports", egress::ports),
];

/// The checks of the host.
pub(super) const HOST_CHECKS: &[Check] = &[
    Check("configuration", installation::configuration),
    Check("files", system::files),
    Check("listeners", system::listeners),
    Check("clock", system::clock),
    Check("resolver", system::resolver),
    Check("store", store::store),
    Check("mtu", system::mtu),
    Check("entropy", system::entropy),
    Check("permissions", installation::permissions),
    Check("certificates", installation::certificates),
    Check("unit", installation::unit),
    Check("confinement", installation::security_modules),
];

/// The host and the configuration that the checks examine.
pub(super) struct Examination<'c> {
    host: Host,
    configuration: &'c Result<ValidConfig, InvalidConfig>,
    unit: Option<Unit>,
    uplinks: Vec<Uplink>,
    sources: Arc<SourcesSnapshot>,
    now: Timestamp,
}

impl<'c> Examination<'c> {
    pub(super) fn read(host: Host, configuration: &'c Result<ValidConfig, InvalidConfig>) -> Self {
        let (sources, now) = (Sources::new(), Timestamp::now());
        sources.refresh();
        let sources = sources.snapshot();
        let plan = configuration.as_ref().ok().filter(|_| host.is_real());
        let uplinks = plan.map(|valid| uplink::read(&valid.plan, &sources, now)).unwrap_or_default();
        let unit = Unit::read_below(&host.path(""));
        Self { host, configuration, unit, uplinks, sources, now }
    }

    fn plan(&self) -> Option<&'c Plan> {
        self.configuration.as_ref().ok().map(|valid| &valid.plan)
    }

    fn config(&self) -> Option<&'c Config> {
        self.configuration.as_ref().ok().map(|valid| &valid.config)
    }

    /// Runs the checks in their order.
    pub(super) fn run(&self, checks: &[Check]) -> Vec<Finding> {
        let run = |Check(name, check): &Check| {
            check(self).into_iter().map(|finding| Finding { check: name, ..finding }).collect::<Vec<_>>()
        };
        checks.iter().flat_map(run).collect()
    }
}

impl Doctor {
    pub(super) fn run(self) -> ExitCode {
        let configuration = load_config(self.config.as_deref());
        let subject = Examination::read(Host::new(self.root.as_deref()), &configuration);
        let findings = [HOST_CHECKS, EGRESS_CHECKS].map(|checks| subject.run(checks)).concat();
        if self.json {
            println!("{:#}", serde_json::json!(findings));
        } else {
            print_findings(&findings);
        }
        exit_code(&findings)
    }
}
