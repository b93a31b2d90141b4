//! Reads `[credentials.NAME]`: the credentials that outgate sends to targets.
//! How does outgate authenticate itself to a target?

use std::collections::BTreeMap;

use super::named_sections::read_word;
use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::{Located, Secret, schema, secret};
use crate::names::CredentialName;

#[derive(Clone, Debug)]
pub struct Credential {
    pub scheme: Authentication,
    /// Whether the credential may be sent over plaintext http, if the route allows plaintext.
    pub plaintext: bool,
}

#[derive(Clone, Debug)]
pub enum Authentication {
    Basic {
        username: Located<String>,
        password: Located<Secret>,
    },
    Bearer {
        token: Located<Secret>,
    },
    Header {
        name: Located<String>,
        value: Located<Secret>,
    },
    /// The client credentials grant.
    OAuth2(Box<OAuth2>),
}

/// The settings of the client credentials grant (RFC 6749 §4.4).
#[derive(Clone, Debug)]
pub struct OAuth2 {
    pub token_url: Located<String>,
    pub client_id: Located<String>,
    pub client_secret: Located<Secret>,
    pub client_auth: ClientAuth,
    pub scopes: Vec<Located<String>>,
    pub audience: Option<Located<String>>,
    /// Additional parameters of the token request, by name.
    pub parameters: Vec<(Located<String>, Located<String>)>,
}

/// How outgate authenticates itself to a token endpoint (RFC 6749 §2.3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuth {
    Basic,
    Body,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CredentialType {
    Basic,
    Bearer,
    Header,
    OAuth2,
}

impl CredentialType {
    const ALL: [(&'static str, CredentialType); 4] = [
        ("basic", CredentialType::Basic),
        ("bearer", CredentialType::Bearer),
        ("header", CredentialType::Header),
        ("oauth2", CredentialType::OAuth2),
    ];

    /// Returns the required keys, each with an example value.
    fn required_keys(self) -> &'static [(&'static str, &'static str)] {
        const SECRET: &str = "\"file:PATH\", \"credential:NAME\" or \"env:NAME\"";
        match self {
            CredentialType::Basic => &[("username", "\"outgate\""), ("password", SECRET)],
            CredentialType::Bearer => &[("token", SECRET)],
            CredentialType::Header => &[("name", "\"X-Api-Key\""), ("value", SECRET)],
            CredentialType::OAuth2 => &[
                ("token_url", "\"https://login.acme.example/oauth2/token\""),
                ("client_id", "\"outgate\""),
                ("client_secret", SECRET),
            ],
        }
    }

    /// Returns the optional keys.
    fn optional_keys(self) -> &'static [&'static str] {
        match self {
            CredentialType::OAuth2 => &["client_auth", "scopes", "audience", "parameters"],
            _ => &[],
        }
    }

    fn all_keys(self) -> impl Iterator<Item = &'static str> {
        self.required_keys().iter().map(|(key, _)| *key).chain(self.optional_keys().iter().copied())
    }
}

pub(super) fn read_all(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<CredentialName, Located<Credential>> {
    let tables = reader.named_tables(files, "credentials", &schema::CREDENTIAL);
    let credentials = tables.into_iter().map(|(name, table)| {
        let value = read_credential(reader, &table)?;
        Some((CredentialName::new(name), Located { value, span: table.span }))
    });
    credentials.flatten().collect()
}

fn read_credential(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Credential> {
    table.require(reader, "type", "write type = \"basic\", \"bearer\", \"header\" or \"oauth2\"");
    let plaintext = table
        .read(reader, "plaintext", |reader, value| reader.parse_choice(value, &[("refuse", false), ("allow", true)]));
    let kind = table.read(reader, "type", |reader, value| reader.parse_choice(value, &CredentialType::ALL))?.value;
    for (key, example) in kind.required_keys() {
        table.require(reader, key, &format!("write {key} = {example}"));
    }
    reject_keys_of_other_types(reader, table, kind);
    let scheme = match kind {
        CredentialType::Basic => {
            let (username, password) =
                (read_text(reader, table, "username"), table.read(reader, "password", secret::read));
            Authentication::Basic { username: username?, password: password? }
        }
        CredentialType::Bearer => Authentication::Bearer { token: table.read(reader, "token", secret::read)? },
        CredentialType::Header => {
            let (name, value) = (table.read(reader, "name", read_word), table.read(reader, "value", secret::read));
            Authentication::Header { name: name?, value: value? }
        }
        CredentialType::OAuth2 => Authentication::OAuth2(Box::new(read_oauth2(reader, table)?)),
    };
    Some(Credential { scheme, plaintext: plaintext.is_some_and(|plaintext| plaintext.value) })
}

/// Reports keys of other types: either the key or the type is a mistake.
fn reject_keys_of_other_types(reader: &mut Reader<'_>, table: &Table<'_>, kind: CredentialType) {
    let all_keys: Vec<&str> = CredentialType::ALL.iter().flat_map(|(_, other)| other.all_keys()).collect();
    let name = CredentialType::ALL.iter().find(|(_, other)| *other == kind).map_or("", |(name, _)| name);
    for key in all_keys.into_iter().filter(|key| kind.all_keys().all(|own| own != *key)) {
        if let Some(value) = table.get(key) {
            let problem = Problem::at(value.span, format!("`{}` is not a key of type \"{name}\"", value.key));
            let keys: Vec<&str> = kind.all_keys().collect();
            reader.problems.push(problem.help(format!("the keys of this type are {}", keys.join(", "))));
        }
    }
}

fn read_oauth2(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<OAuth2> {
    let token_url = table.read(reader, "token_url", read_word);
    let client_id = read_text(reader, table, "client_id");
    let client_secret = table.read(reader, "client_secret", secret::read);
    let client_auth = table.read(reader, "client_auth", |reader, value| {
        reader.parse_choice(value, &[("basic", ClientAuth::Basic), ("body", ClientAuth::Body)])
    });
    let scopes = table.read_list(reader, "scopes", None, read_word);
    let audience = read_text(reader, table, "audience");
    let parameters = table.get("parameters").map(|value| read_parameters(reader, &value));
    Some(OAuth2 {
        token_url: token_url?,
        client_id: client_id?,
        client_secret: client_secret?,
        client_auth: client_auth.map_or(ClientAuth::Basic, |auth| auth.value),
        scopes: scopes.unwrap_or_default(),
        audience,
        parameters: parameters.unwrap_or_default(),
    })
}

fn read_parameters(reader: &mut Reader<'_>, value: &Value<'_>) -> Vec<(Located<String>, Located<String>)> {
    let members = reader.members(value, "write { resource = \"https://api.acme.example\" }");
    let parameter = |(name, value): (Located<&str>, Value<'_>)| {
        let text = reader.text(&value)?.to_owned();
        Some((Located { value: name.value.to_owned(), span: name.span }, value.located(text)))
    };
    members.into_iter().filter_map(parameter).collect()
}

fn read_text(reader: &mut Reader<'_>, table: &Table<'_>, key: &str) -> Option<Located<String>> {
    table.read(reader, key, |reader, value| {
        let text = reader.text(value)?.to_owned();
        if text.is_empty() {
            let problem = Problem::at(value.span, format!("`{}` is empty", value.key));
            reader.problems.push(problem.help("write a value, or remove the key"));
            return None;
        }
        Some(value.located(text))
    })
}
