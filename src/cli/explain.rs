//! `outgate explain`: the decisions about one webhook, made without sending it.
//! Which route would it take, and why?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use http::Method;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::alone::Sender;
use super::load_or_say;
use crate::delivery::{self, Explained, Question};

#[derive(Args)]
#[command(after_help = "Examples:
  outgate explain POST https://hooks.acme.example/in
  outgate explain POST https://hooks.acme.example/in --client billing --tenant acme --json

Nothing is sent and no name is resolved. Exit code 0: the webhook would go out. 1: it would be refused.")]
pub(super) struct Explain {
    method: Method,
    /// The target, an https or http URL
    url: String,
    #[command(flatten)]
    sender: Sender,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(super) fn run(self) -> ExitCode {
        let valid = match load_or_say(self.config.as_deref()) {
            Ok(valid) => valid,
            Err(code) => return code,
        };
        let client = match self.sender.client(&valid.plan) {
            Ok(client) => client,
            Err(code) => return code,
        };
        let tenant = self.sender.tenant();
        let question = Question {
            method: &self.method,
            url: &self.url,
            client: &client,
            tenant: tenant.as_ref(),
            now: Timestamp::now(),
        };
        let explained = delivery::explain(&valid.plan, &question);
        if self.json {
            println!("{:#}", as_json(&explained));
        } else {
            explained.lines.iter().for_each(|(step, what)| println!("{step:<10} {what}"));
        }
        match explained.refusal {
            None => ExitCode::SUCCESS,
            Some(_) => ExitCode::FAILURE,
        }
    }
}

fn as_json(explained: &Explained) -> Value {
    let steps: Vec<_> = explained.lines.iter().map(|(step, what)| json!({ "step": step, "what": what })).collect();
    json!({ "steps": steps, "refusal": explained.refusal.map(delivery::refusal::Code::name) })
}
