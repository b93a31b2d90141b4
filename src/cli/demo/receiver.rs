//! `outgate demo --receiver`: a receiver that verifies webhooks, for a proxy that the operator configures.
//! Does a webhook arrive, and is its signature valid?

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::receivers::{DemoError, issue_leaf, new_ca, start_receiver};
use super::{TempDir, write_private_file};

/// The name in the receiver's certificate.
const HOST: &str = "hooks.customer.example";

/// Runs until SIGINT or SIGTERM, and then removes its directory.
pub(super) async fn run(path: PathBuf, listen: SocketAddr) -> Result<(), String> {
    let signals = || Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
    let (mut interrupt, mut terminate) =
        signals().map_err(|error: std::io::Error| format!("cannot listen for signals: {error}"))?;
    let secret = crate::policy::sign::new_key("standard-webhooks", None).map_err(|error| error.to_string())?;
    let (address, ca) = start(listen, &secret).map_err(|error| format!("cannot listen on {listen}: {error}"))?;
    let folder = TempDir::new(path.clone())
        .map_err(|error| format!("cannot create the directory {}: {error}", path.display()))?;
    write_private_file(&folder.path("ca.pem"), &ca)?;
    write_private_file(&folder.path("key"), &secret)?;
    println!(
        "The receiver {HOST} listens on {address} until Ctrl-C. {0}/ca.pem is its certificate authority, {0}/key is \
         its signing key.",
        path.display()
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn start(listen: SocketAddr, secret: &str) -> Result<(SocketAddr, String), DemoError> {
    let ca = new_ca()?;
    let observer = Arc::new(|webhook: &super::receivers::ReceivedWebhook| {
        let signature = if webhook.verified { "signature verified" } else { "signature NOT verified" };
        println!("{} from {}: {signature}", webhook.request, webhook.from);
    });
    let address = start_receiver(listen, issue_leaf(HOST, &ca, false)?, secret, observer)?;
    Ok((address, ca.pem()))
}
