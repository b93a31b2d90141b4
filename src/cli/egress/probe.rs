//! `outgate egress probe`: knocks at a target from the addresses that deliveries leave from.
//! Whom of us does this target let in?

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use serde_json::{Value, json};

use super::super::local_runtime::{SenderArgs, run_locally, usage_error};
use super::super::{escape_control_characters, json_number, load_or_report};
use crate::config::duration_argument;
use crate::delivery::refusal::{Code, Refusal};
use crate::delivery::{self, ProbeReport, ProbeRequest, ProbeResult, milliseconds};
use crate::names::PoolName;
use crate::sysexits;

#[derive(Args)]
#[command(after_help = "Examples:
  outgate egress probe https://hooks.acme.example/in
  outgate egress probe https://hooks.acme.example/in --pool next --timeout 2s
  outgate egress probe https://hooks.acme.example/in --json | jq -r '.gaps[].lacks[]'

DNS, TCP, TLS and certificate from every usable address of the pool, with the configuration's own route, guard, resolver
and trust, as a delivery would go; nothing is sent but the handshake. Where some addresses get an answer and others do
not, that is said: the target's allow-list may lack them. The target must allow the port and take the route that it is
asked for.

Exit code 0: every address reaches the target and its certificate is good. 69: some do not, or none. 2: wrong usage.
78: the configuration has problems.")]
pub(in super::super) struct Probe {
    /// The target, an https or http URL
    url: String,
    /// From this pool, instead of the one of the route that the URL takes
    #[arg(long, value_name = "NAME")]
    pool: Option<String>,
    #[command(flatten)]
    sender: SenderArgs,
    /// From so many addresses; of a larger pool, a sample spread over its ranges
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    sample: u16,
    /// For DNS, TCP and TLS each, such as 2s; otherwise the route's own timeouts count
    #[arg(long, value_name = "TIME", value_parser = duration_argument)]
    timeout: Option<Duration>,
    /// The configuration file
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Probe {
    pub(in super::super) fn run(self) -> ExitCode {
        self.probe().unwrap_or_else(|code| code)
    }

    fn probe(self) -> Result<ExitCode, ExitCode> {
        let valid = load_or_report(self.config.as_deref())?;
        let client = self.sender.client(&valid.plan)?;
        let pool = match &self.pool {
            None => None,
            Some(name) => match valid.plan.pools.get(&PoolName::new(name.as_str())) {
                Some(pool) => Some(pool.clone()),
                None => return Err(usage_error(&format!("there is no pool {name:?}"))),
            },
        };
        let tenant = self.sender.tenant();
        let asked = ProbeRequest {
            url: &self.url,
            client: &client,
            tenant: tenant.as_ref(),
            pool: pool.as_ref(),
            most: self.sample.into(),
            timeout: self.timeout,
        };
        let probed = run_locally(valid, async |runtime| delivery::probe(runtime, &asked).await)?;
        match &probed {
            Ok(probed) if self.json => println!("{:#}", as_json(probed)),
            Ok(probed) => tell(probed),
            Err(refusal) if refusal.code == Code::RequestMalformed => return Err(usage_error(refusal.detail())),
            Err(refusal) if self.json => println!("{:#}", json!({ "refusal": refusal_as_json(refusal) })),
            Err(refusal) => println!("{}", refused(refusal)),
        }
        let all = probed.is_ok_and(|probed| probed.met.iter().all(|met| met.outcome.is_ok()));
        Ok(if all { ExitCode::SUCCESS } else { ExitCode::from(sysexits::UNAVAILABLE) })
    }
}

fn refused(refusal: &Refusal) -> String {
    let cause = refusal.cause().map(|cause| format!(" ({cause})")).unwrap_or_default();
    escape_control_characters(&format!(
        "refused before anything was dialled: {}: {}{cause}",
        result(refusal),
        refusal.detail()
    ))
}

/// The code, and the word within it.
fn result(refusal: &Refusal) -> String {
    let word = refusal.details().map(|word| format!(": {word}")).unwrap_or_default();
    format!("{}{word}", refusal.code.name())
}

fn tell(probed: &ProbeReport) {
    let ProbeReport { target, route, survey, met, .. } = probed;
    println!("{target} by route {}, pool {}, trust {}", route.name, route.pool.name(), route.trust.name);
    let addresses: Vec<_> = probed.addresses.iter().map(ToString::to_string).collect();
    println!("dns      {}: {}", in_words(probed.resolved), addresses.join(", "));
    let sources = survey.sources.len();
    match survey.is_sample() {
        true => println!("sources  {sources} of {} usable ones, a sample spread over their ranges", survey.of),
        false => println!("sources  {sources}, every usable one"),
    }
    println!();
    let mut table = vec![["SOURCE", "TARGET", "TCP", "TLS", "RESULT", "CERTIFICATE"].map(str::to_owned)];
    table.extend(met.iter().map(row));
    let widths: [usize; 6] = std::array::from_fn(|cell| table.iter().map(|row| row[cell].len()).max().unwrap_or(0));
    for row in &table {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        println!("{}", cells.join("  ").trim_end());
    }
    let good = met.iter().filter(|met| met.outcome.is_ok()).count();
    println!("\n{good} of {} connections came through.", met.len());
    for gap in &probed.gaps {
        println!("{gap}{}", if survey.is_sample() { " (of a larger pool, by a sample)" } else { "" });
    }
}

fn row(met: &ProbeResult) -> [String; 6] {
    let certificate = match &met.outcome {
        Ok(Some(shown)) => {
            let unverified = if shown.proof.verified { "" } else { "NOT VERIFIED, " };
            escape_control_characters(&format!("{unverified}until {}, by {}", shown.proof.expires, shown.issuer))
        }
        Ok(None) => "none: plaintext".to_owned(),
        Err(_) => String::new(),
    };
    [
        met.hop.from().to_string(),
        met.hop.to().to_string(),
        in_words(met.connect),
        met.tls.map_or_else(|| "-".to_owned(), in_words),
        met.outcome.as_ref().map_or_else(result, |_| "ok".to_owned()),
        certificate,
    ]
}

fn in_words(time: Duration) -> String {
    format!("{:.1} ms", milliseconds(time))
}

fn as_json(probed: &ProbeReport) -> Value {
    let ProbeReport { target, route, survey, .. } = probed;
    let gaps = probed.gaps.iter().map(|gap| {
        let mut value = json!(gap);
        value["words"] = gap.to_string().into();
        value
    });
    json!({
        "target": target.to_string(),
        "route": route.name.as_str(),
        "pool": route.pool.name().as_str(),
        "trust": route.trust.name.as_str(),
        "dns": { "addresses": probed.addresses, "ms": milliseconds(probed.resolved) },
        "usable": json_number(survey.of),
        "probed": survey.sources.len(),
        "sampled": survey.is_sample(),
        "connections": probed.met.iter().map(met_as_json).collect::<Vec<_>>(),
        "gaps": gaps.collect::<Vec<_>>(),
        "refusal": null,
    })
}

fn met_as_json(met: &ProbeResult) -> Value {
    let shown = met.outcome.as_ref().ok().and_then(Option::as_ref);
    let certificate = shown.map(|shown| {
        let proof = &shown.proof;
        json!({ "issuer": shown.issuer, "expires": proof.expires, "verified": proof.verified })
    });
    json!({
        "source": met.hop.from(),
        "target": met.hop.to(),
        "ms": { "connect": milliseconds(met.connect), "tls": met.tls.map(milliseconds) },
        "tls": shown.map(|shown| json!({ "version": shown.proof.version, "suite": shown.proof.suite })),
        "certificate": certificate,
        "refusal": met.outcome.as_ref().err().map(refusal_as_json),
    })
}

fn refusal_as_json(refusal: &Refusal) -> Value {
    json!({
        "code": refusal.code.name(),
        "details": refusal.details(),
        "blame": refusal.effective_blame(),
        "detail": refusal.detail(),
        "cause": refusal.cause(),
    })
}
