//! reqwest. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
//! TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust besides the system's.

use std::env;
use std::error::Error;
use std::time::Duration;

use reqwest::blocking::Client;
use reqwest::redirect::Policy;
use reqwest::{Certificate, Proxy};

fn main() -> Result<(), Box<dyn Error>> {
    let mut client = Client::builder()
        .proxy(Proxy::all(env::var("OUTGATE_PROXY")?)?)
        .redirect(Policy::none())
        .timeout(Duration::from_secs(130)); // longer than outgate's own `timeouts.total`
    if let Ok(path) = env::var("OUTGATE_CA") {
        client = client.tls_certs_merge(Certificate::from_pem_bundle(&std::fs::read(path)?)?);
    }
    let response = client
        .build()?
        .post(env::var("TARGET")?)
        .header("Outgate-TLS", "1") // http:// in TARGET: outgate uses https to the receiver
        .header("Outgate-Tenant", "acme")
        .header("Content-Type", "application/json")
        .body(r#"{"type":"ping"}"#)
        .send()?; // an error of a refused CONNECT has no more than the status
    println!("{}", response.status().as_u16());
    for name in ["Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"] {
        if let Some(value) = response.headers().get(name) {
            println!("{name}: {}", value.to_str()?);
        }
    }
    Ok(())
}
