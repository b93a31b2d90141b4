//! Runs a configuration for one command, in this process and without listeners.
//! How do `send`, `explain` and `egress probe` work without a running proxy?

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;

use super::ValidConfig;
use crate::config::Config;
use crate::names::{ClientName, TenantName};
use crate::policy::Plan;
use crate::policy::authn::ANONYMOUS;
use crate::policy::guard::LocalAddresses;
use crate::state::Runtime;
use crate::state::config::ActiveConfig;
use crate::state::observability::records::Records;
use crate::state::upstreams::sources::Sources;
use crate::sysexits;

/// The client and tenant that a command acts as. The operator states them without authentication.
#[derive(Args)]
pub(super) struct SenderArgs {
    /// Act as this client; without it, as an anonymous client
    #[arg(long)]
    client: Option<String>,
    /// Act for this tenant
    #[arg(long)]
    tenant: Option<String>,
}

impl SenderArgs {
    pub(super) fn client(&self, plan: &Plan) -> Result<ClientName, ExitCode> {
        let client = ClientName::new(self.client.as_deref().unwrap_or(ANONYMOUS));
        if self.client.is_some() && plan.clients.get(&client).is_none() {
            // The word may be a token in the wrong place.
            return Err(usage_error("--client: the configuration has no client of this name"));
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

/// Prints a usage error and returns its exit code.
pub(super) fn usage_error(reason: &str) -> ExitCode {
    exit_with_error(sysexits::USAGE, reason)
}

/// Runs `work` with the state that a proxy with this configuration would have.
pub(super) fn run_locally<T>(valid: ValidConfig, work: impl AsyncFnOnce(&Arc<Runtime>) -> T) -> Result<T, ExitCode> {
    new_tokio_runtime()?.block_on(async {
        let active_config = ActiveConfig::new(valid.plan, &valid.config.resolver, None)
            .map_err(|error| exit_with_error(sysexits::CONFIG, &format!("cannot resolve names: {error}")))?;
        let runtime = Arc::new(Runtime::new(active_config, Records::in_memory()));
        runtime.sources.set_listeners(listener_addresses(&valid.config));
        Ok(work(&runtime).await)
    })
}

/// Creates a single-threaded tokio runtime.
pub(super) fn new_tokio_runtime() -> Result<tokio::runtime::Runtime, ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.map_err(|error| exit_with_error(sysexits::OS_ERROR, &format!("cannot start the tokio runtime: {error}")))
}

/// Prints an error, and returns the exit code.
pub(super) fn exit_with_error(code: u8, reason: &str) -> ExitCode {
    eprintln!("outgate: {reason}");
    ExitCode::from(code)
}

/// Returns the local addresses that the guard of this configuration denies.
pub(super) fn own_addresses(config: &Config) -> Arc<LocalAddresses> {
    let sources = Sources::new();
    sources.set_listeners(listener_addresses(config));
    sources.local_addresses()
}

/// Returns the addresses that the proxy of this configuration listens on. The guard denies them as targets.
fn listener_addresses(config: &Config) -> Vec<SocketAddr> {
    config.binds().filter_map(|listen| listen.address.tcp()).collect()
}
