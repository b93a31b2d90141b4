//! `outgate demo --receiver`: a customer's server for the newcomer's own proxy.
//! How does a first request arrive, and is its signature right?

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use super::receivers::{DemoError, authority, leaf, receive};
use super::{TempDir, write};

/// The name in the receiver's certificate.
const HOST: &str = "hooks.customer.example";

/// Runs until INT or TERM, and takes its folder along.
pub(super) async fn run(path: PathBuf, listen: SocketAddr) -> Result<(), String> {
    let signals = || Ok((signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?));
    let (mut interrupt, mut terminate) =
        signals().map_err(|fault: std::io::Error| format!("cannot listen for signals: {fault}"))?;
    let secret = crate::policy::sign::new_key("standard-webhooks", None).map_err(|fault| fault.to_string())?;
    let (address, ca) = start(listen, &secret).map_err(|fault| format!("cannot listen on {listen}: {fault}"))?;
    let folder =
        TempDir::new(path.clone()).map_err(|fault| format!("cannot make the folder {}: {fault}", path.display()))?;
    write(&folder.path("ca.pem"), &ca)?;
    write(&folder.path("key"), &secret)?;
    println!(
        "{HOST} is on {address} until Ctrl-C. {0}/ca.pem is its certificate authority, {0}/key its signing key.",
        path.display()
    );
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    Ok(())
}

fn start(listen: SocketAddr, secret: &str) -> Result<(SocketAddr, String), DemoError> {
    let ca = authority()?;
    let observer = Arc::new(|seen: &super::receivers::ReceivedWebhook| {
        let signature = if seen.verified { "signature verified" } else { "signature NOT verified" };
        println!("{} from {}: {signature}", seen.request, seen.from);
    });
    let address = receive(listen, leaf(HOST, &ca, false)?, secret, observer)?;
    Ok((address, ca.pem()))
}
