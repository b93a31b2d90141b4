//! `outgate egress verify`: checks that the host has every source address, and can send from it.
//! Which source addresses are unusable on this host, and what corrects that?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;

use super::super::doctor::{self, EGRESS_CHECKS, Examination, Finding, Host, print_findings};
use super::super::{json_number, load_or_report};
use super::echo;
use crate::names::PoolName;
use crate::state::upstreams::sources::AddressCount;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress verify
  outgate egress verify --json | jq '.pools[].missing'
  outgate egress verify --echo https://echo.example/

The command checks that this host has every address of every pool, that each has a route, and that responses come back by
the same interface; it checks the reverse-path filter, the connection tracker and the ports for outgoing connections. Each
problem has the command that corrects it. `outgate doctor` checks the rest of the host.

With --echo, the command sends GET to the URL from each source address, and compares the address in the response with the
one that customers allow. The service returns the address of its client, as text or JSON. The guard and the trust
\"public\" of the configuration apply.

Exit code 0: every address is usable. 1: there are problems.")]
pub(in super::super) struct VerifySources {
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Ask this service from each address which address it sees
    #[arg(long, value_name = "URL")]
    echo: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl VerifySources {
    pub(in super::super) fn run(self) -> ExitCode {
        let valid = match load_or_report(self.config.as_deref()) {
            Ok(valid) => Ok(valid),
            Err(code) => return code,
        };
        let subject = Examination::read(Host::new(None), &valid);
        let mut findings = subject.run(EGRESS_CHECKS);
        if let (Some(url), Ok(valid)) = (&self.echo, &valid) {
            match echo::ask_from_all(valid, url) {
                Ok(seen) => findings.extend(seen.into_iter().map(|finding| Finding { check: "echo", ..finding })),
                Err(code) => return code,
            }
        }
        if self.json {
            let pool = |(name, missing, count): (&PoolName, Vec<_>, AddressCount)| {
                let AddressCount { configured, usable } = count;
                json!({
                    "pool": name.as_str(), "configured": json_number(configured), "usable": json_number(usable), "missing": missing,
                })
            };
            let pools: Vec<_> = subject.pools().map(pool).collect();
            println!("{:#}", json!({ "pools": pools, "findings": findings }));
        } else {
            print_findings(&findings);
        }
        doctor::exit_code(&findings)
    }
}
