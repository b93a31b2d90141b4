//! The keys of `[credentials.NAME]`.
//! Which keys may a credential have?

use super::Schema;

pub(in crate::config) static CREDENTIAL: Schema = Schema {
    path: "credentials.*",
    title: "[credentials.NAME]",
    keys: &[
        "type",
        "username",
        "password",
        "token",
        "name",
        "value",
        "token_url",
        "client_id",
        "client_secret",
        "client_auth",
        "scopes",
        "audience",
        "parameters",
        "plaintext",
    ],
    reserved: &[],
    aliases: &[
        ("kind", "type"),
        ("scheme", "type"),
        ("user", "username"),
        ("pass", "password"),
        ("bearer", "token"),
        ("access_token", "token"),
        ("header", "name"),
        ("token_endpoint", "token_url"),
        ("token_uri", "token_url"),
        ("url", "token_url"),
        ("secret", "client_secret"),
        ("auth_type", "client_auth"),
        ("auth_style", "client_auth"),
        ("token_endpoint_auth_method", "client_auth"),
        ("scope", "scopes"),
        ("endpoint_params", "parameters"),
        ("params", "parameters"),
    ],
};
