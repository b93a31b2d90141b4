//! `outgate send`: sends one webhook and shows every step.
//! Does the webhook arrive, from which source, and how long does each step take?

mod direct;
mod result;
mod via_proxy;

use std::fs;
use std::io::{self, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use bytes::Bytes;
use clap::Args;
use http::{HeaderMap, HeaderName, HeaderValue, Method, header};

use super::load_or_report;
use super::local_runtime::{SenderArgs, usage_error};
use crate::names::USER_AGENT;
use via_proxy::ProxyUrl;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate send https://hooks.acme.example/in -d '{\"type\":\"ping\"}' --client billing --tenant acme
  outgate send https://hooks.acme.example/in -d @event.json -H 'Webhook-Id: msg_1' --json
  outgate send https://hooks.acme.example/in -d @- --proxy http://billing:TOKEN@127.0.0.1:4750

Without --proxy, this process makes the delivery from the configuration, with its own limits and without a record in the
log, as the client of --client. With --proxy, a running proxy makes the delivery and authenticates the client. In both
cases the webhook is really sent, once, and is signed like any other.

A body is application/json unless -H 'Content-Type: …' says otherwise. Exit code 0: the target responded with 2xx. 1:
the target responded with another status. 69: outgate refused the webhook, or the response is incomplete. 2: wrong
usage. 78: the configuration has problems.")]
pub(super) struct Send {
    /// The target, an https or http URL
    url: String,
    #[arg(short = 'X', long = "request", value_name = "METHOD", default_value = "POST")]
    method: Method,
    /// A header field; may be repeated
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// The body; @FILE reads it from a file, @- from stdin
    #[arg(short, long, value_name = "BODY", allow_hyphen_values = true)]
    data: Option<String>,
    #[command(flatten)]
    sender: SenderArgs,
    /// Send through this proxy: http://CLIENT:TOKEN@HOST:PORT
    #[arg(long, value_name = "URL", conflicts_with_all = ["client", "config"])]
    proxy: Option<String>,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// The request to send.
struct RequestSpec {
    method: Method,
    url: String,
    fields: HeaderMap,
    body: Bytes,
}

/// The fields that the HTTP client sets itself.
const RESERVED_FIELDS: [HeaderName; 4] =
    [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];

impl Send {
    pub(super) fn run(self) -> ExitCode {
        self.send().unwrap_or_else(|code| code)
    }

    fn send(self) -> Result<ExitCode, ExitCode> {
        let request = self.request_spec().map_err(|reason| usage_error(&reason))?;
        // Parsed here and not by clap, whose errors print the value: it may have a credential.
        let proxy = self.proxy.as_deref().map(str::parse::<ProxyUrl>).transpose();
        let result = match proxy.map_err(|reason| usage_error(&format!("--proxy: {reason}")))? {
            Some(proxy) => via_proxy::send(&proxy, &request)?,
            None => {
                let valid = load_or_report(self.config.as_deref())?;
                let client = self.sender.client(&valid.plan)?;
                if valid.plan.clients.get(&client).is_none() {
                    return Err(usage_error(
                        "the configuration does not allow anonymous clients: select one with --client NAME",
                    ));
                }
                direct::send(valid, client, &request)?
            }
        };
        if self.json {
            println!("{:#}", result.as_json());
        } else {
            print!("{}", result.to_text());
        }
        Ok(result.exit_code())
    }

    fn request_spec(&self) -> Result<RequestSpec, String> {
        if self.method == Method::CONNECT {
            return Err("CONNECT opens a tunnel, and `send` sends one request: use another method".to_owned());
        }
        let mut fields = HeaderMap::new();
        fields.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        if self.data.is_some() {
            fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        let custom: Result<Vec<_>, String> = self.header.iter().map(|text| parse_field(text)).collect();
        let custom = custom.map_err(|reason| format!("--header: {reason}"))?;
        for (name, _) in &custom {
            fields.remove(name);
        }
        for (name, value) in custom {
            fields.append(name, value);
        }
        if let Some(tenant) = self.sender.tenant() {
            let tenant = HeaderValue::try_from(tenant.as_str())
                .map_err(|_| "the tenant has characters that a header field cannot have")?;
            fields.insert("outgate-tenant", tenant);
        }
        let body = self.data.as_deref().map_or(Ok(Bytes::new()), read_body)?;
        Ok(RequestSpec { method: self.method.clone(), url: self.url.clone(), fields, body })
    }
}

/// Parses a header field. The error has no part of it, because its value may be a credential.
fn parse_field(text: &str) -> Result<(HeaderName, HeaderValue), String> {
    let (name, value) = text.split_once(':').ok_or("write it as NAME: VALUE")?;
    let name: HeaderName = name.trim().parse().map_err(|_| "this is not the name of a header field")?;
    if RESERVED_FIELDS.contains(&name) {
        return Err(
            "outgate sets Host, Content-Length, Transfer-Encoding and Connection itself: remove the field".to_owned()
        );
    }
    let value =
        HeaderValue::try_from(value.trim()).map_err(|_| "the value has characters that a header field cannot have")?;
    Ok((name, value))
}

fn read_body(data: &str) -> Result<Bytes, String> {
    let Some(path) = data.strip_prefix('@') else { return Ok(Bytes::copy_from_slice(data.as_bytes())) };
    let mut bytes = Vec::new();
    let read = match path {
        "-" => io::stdin().read_to_end(&mut bytes).map(drop),
        path => fs::read(path).map(|read| bytes = read),
    };
    read.map(|()| bytes.into()).map_err(|error| format!("cannot read {path}: {error}"))
}
