//! A configuration put to work for one command, without a listener: what commands that ask or send as a client share.
//! On whose behalf, and by which rules?

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::ValidConfig;
use crate::config::{Config, Listen};
use crate::names::{ClientName, TenantName};
use crate::policy::Plan;
use crate::policy::authn::ANONYMOUS;
use crate::policy::guard::LocalAddresses;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::observability::records::Records;
use crate::state::upstreams::sources::Sources;
use crate::sysexits;

/// Whoever runs a command says who sends: nothing has to be proven on this side of the network.
#[derive(Args)]
pub(super) struct SenderArgs {
    /// As this client; without it, as an anonymous one
    #[arg(long)]
    client: Option<String>,
    /// For this tenant
    #[arg(long)]
    tenant: Option<String>,
}

impl SenderArgs {
    pub(super) fn client(&self, plan: &Plan) -> Result<ClientName, ExitCode> {
        let client = ClientName::new(self.client.as_deref().unwrap_or(ANONYMOUS));
        if self.client.is_some() && plan.clients.get(&client).is_none() {
            return Err(misused(&format!("there is no client {:?}", client.as_str())));
        }
        Ok(client)
    }

    pub(super) fn client_name(&self) -> Option<&str> {
        self.client.as_deref()
    }

    pub(super) fn tenant(&self) -> Option<TenantName> {
        self.tenant.as_deref().map(TenantName::new)
    }
}

/// Wrong usage, and the exit code for it.
pub(super) fn misused(why: &str) -> ExitCode {
    failed(sysexits::USAGE, why)
}

/// Runs `work` beside what a proxy with this configuration would have.
pub(super) fn with_runtime<T>(valid: ValidConfig, work: impl AsyncFnOnce(&Arc<Runtime>) -> T) -> Result<T, ExitCode> {
    runtime()?.block_on(async {
        let active = ActiveConfig::new(valid.plan, &valid.config.resolver, None)
            .map_err(|fault| failed(sysexits::CONFIG, &format!("cannot resolve names: {fault}")))?;
        let runtime = Arc::new(Runtime::new(active, Records::kept()));
        runtime.sources.listening(listeners(&valid.config));
        Ok(work(&runtime).await)
    })
}

/// For one thing at a time.
pub(super) fn runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|fault| failed(sysexits::OS_ERROR, &format!("cannot start: {fault}")))
}

fn failed(code: u8, why: &str) -> ExitCode {
    eprintln!("outgate: {why}");
    ExitCode::from(code)
}

/// What the guard keeps a proxy of this configuration from reaching, on this host.
pub(super) fn own(config: &Config) -> Arc<LocalAddresses> {
    let sources = Sources::new();
    sources.listening(listeners(config));
    sources.own()
}

/// Where the proxy of this configuration listens: as little as it would we send anything there.
fn listeners(config: &Config) -> Vec<SocketAddr> {
    let written = config.server.listen.iter().chain(&config.admin.listen);
    let tcp = written.filter_map(|listen| match listen.address {
        Listen::Tcp(address) => Some(address),
        Listen::Unix(_) | Listen::Systemd => None,
    });
    tcp.collect()
}
