//! `outgate token new`: generates a token for a client, and its hash for the configuration.
//! What does a client send, and what does the configuration store?

use std::process::ExitCode;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use clap::{Args, Subcommand};
use data_encoding::HEXLOWER;

use crate::digest::sha256;

#[derive(Subcommand)]
pub(super) enum Token {
    /// Generate a token and its hash
    New(NewToken),
}

#[derive(Args)]
#[command(after_help = "Examples:
  outgate token new
  outgate token new --json

Give the token to the client, which sends it as the password of its proxy URL or as `Proxy-Authorization: Bearer`.
Write the hash into `[clients.NAME] tokens`. A leaked configuration therefore reveals no token.")]
pub(super) struct NewToken {
    /// Print token and hash as a JSON object
    #[arg(long)]
    json: bool,
}

impl Token {
    pub(super) fn run(self) -> ExitCode {
        let Token::New(new) = self;
        let token = generate_token();
        let hash = format!("sha256:{}", HEXLOWER.encode(&sha256(token.as_bytes())));
        if new.json {
            println!("{}", serde_json::json!({ "token": token, "hash": hash }));
        } else {
            println!("token  {token}\nhash   {hash}");
        }
        ExitCode::SUCCESS
    }
}

/// Generates a token of 256 random bits, which no one can guess, so its hash needs no salt.
pub(super) fn generate_token() -> String {
    format!("ogt_{}", URL_SAFE_NO_PAD.encode(super::random_bytes::<32>()))
}
