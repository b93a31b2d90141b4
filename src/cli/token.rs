//! `outgate token new`: a secret for a client, and its hash for the configuration.
//! What does a client send, and what do we keep?

use std::process::ExitCode;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;

#[derive(Subcommand)]
pub(super) enum Token {
    /// Make a token
    New(NewToken),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate token new
  outgate token new --json

The token goes to the client, which sends it as the password of its proxy URL or as `Proxy-Authorization: Bearer`.
The hash goes into `[clients.NAME] tokens`: a configuration that leaks gives nobody a token.")]
pub(super) struct NewToken {
    /// Token and hash as a JSON object
    #[arg(long)]
    json: bool,
}

impl Token {
    pub(super) fn run(self) -> ExitCode {
        let Token::New(new) = self;
        let token = generate_token();
        let hash = format!("sha256:{}", HEXLOWER.encode(digest(&SHA256, token.as_bytes()).as_ref()));
        if new.json {
            println!("{}", serde_json::json!({ "token": token, "hash": hash }));
        } else {
            println!("token  {token}\nhash   {hash}");
        }
        ExitCode::SUCCESS
    }
}

/// 256 random bits: nobody guesses it, so its hash needs no salt.
pub(super) fn generate_token() -> String {
    format!("ogt_{}", URL_SAFE_NO_PAD.encode(super::random_bytes::<32>()))
}
