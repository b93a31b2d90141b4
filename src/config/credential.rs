//! `[credentials.NAME]`: what we show to targets that let nobody in without.
//! Who are we to the target, and by what does it know?

use std::collections::BTreeMap;

use super::named::read_word;
use super::problem::Problem;
use super::read::{Reader, Table, Value};
use super::{Located, Secret, keys, secret};
use crate::names::CredentialName;

#[derive(Clone, Debug)]
pub struct Credential {
    pub scheme: Authentication,
    /// It may leave over plaintext http, where the route does.
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

/// RFC 6749 §4.4.
#[derive(Clone, Debug)]
pub struct OAuth2 {
    pub token_url: Located<String>,
    pub client_id: Located<String>,
    pub client_secret: Located<Secret>,
    pub client_auth: ClientAuth,
    pub scopes: Vec<Located<String>>,
    pub audience: Option<Located<String>>,
    /// Further parameters of the request for a token, by name.
    pub parameters: Vec<(Located<String>, Located<String>)>,
}

/// How we prove to a token endpoint who we are (RFC 6749 §2.3.1).
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

    /// With what to write.
    fn needs(self) -> &'static [(&'static str, &'static str)] {
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

    /// Besides.
    fn takes(self) -> &'static [&'static str] {
        match self {
            CredentialType::OAuth2 => &["client_auth", "scopes", "audience", "parameters"],
            _ => &[],
        }
    }

    fn keys(self) -> impl Iterator<Item = &'static str> {
        self.needs().iter().map(|(key, _)| *key).chain(self.takes().iter().copied())
    }
}

pub(super) fn all(reader: &mut Reader<'_>, files: &[Table<'_>]) -> BTreeMap<CredentialName, Located<Credential>> {
    let tables = reader.named_tables(files, "credentials", &keys::CREDENTIAL);
    let credentials = tables.into_iter().map(|(name, table)| {
        let value = credential(reader, &table)?;
        Some((CredentialName::new(name), Located { value, span: table.span }))
    });
    credentials.flatten().collect()
}

fn credential(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Credential> {
    table.require(reader, "type", "write type = \"basic\", \"bearer\", \"header\" or \"oauth2\"");
    let plaintext =
        table.one(reader, "plaintext", |reader, value| reader.choice(value, &[("refuse", false), ("allow", true)]));
    let kind = table.one(reader, "type", |reader, value| reader.choice(value, &CredentialType::ALL))?.value;
    for (key, what) in kind.needs() {
        table.require(reader, key, &format!("write {key} = {what}"));
    }
    refuse_the_rest(reader, table, kind);
    let scheme = match kind {
        CredentialType::Basic => {
            let (username, password) = (text(reader, table, "username"), table.one(reader, "password", secret::read));
            Authentication::Basic { username: username?, password: password? }
        }
        CredentialType::Bearer => Authentication::Bearer { token: table.one(reader, "token", secret::read)? },
        CredentialType::Header => {
            let (name, value) = (table.one(reader, "name", read_word), table.one(reader, "value", secret::read));
            Authentication::Header { name: name?, value: value? }
        }
        CredentialType::OAuth2 => Authentication::OAuth2(Box::new(oauth2(reader, table)?)),
    };
    Some(Credential { scheme, plaintext: plaintext.is_some_and(|plaintext| plaintext.value) })
}

/// A key of another type says that one of the two was not meant.
fn refuse_the_rest(reader: &mut Reader<'_>, table: &Table<'_>, kind: CredentialType) {
    let of_types: Vec<&str> = CredentialType::ALL.iter().flat_map(|(_, other)| other.keys()).collect();
    let name = CredentialType::ALL.iter().find(|(_, other)| *other == kind).map_or("", |(name, _)| name);
    for key in of_types.into_iter().filter(|key| kind.keys().all(|own| own != *key)) {
        if let Some(value) = table.get(key) {
            let problem = Problem::at(value.span, format!("`{}` is not of type \"{name}\"", value.key));
            let keys: Vec<&str> = kind.keys().collect();
            reader.problems.push(problem.help(format!("the keys of this type are {}", keys.join(", "))));
        }
    }
}

fn oauth2(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<OAuth2> {
    let token_url = table.one(reader, "token_url", read_word);
    let client_id = text(reader, table, "client_id");
    let client_secret = table.one(reader, "client_secret", secret::read);
    let client_auth = table.one(reader, "client_auth", |reader, value| {
        reader.choice(value, &[("basic", ClientAuth::Basic), ("body", ClientAuth::Body)])
    });
    let scopes = table.many(reader, "scopes", None, read_word);
    let audience = text(reader, table, "audience");
    let parameters = table.get("parameters").map(|value| parameters(reader, &value));
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

fn parameters(reader: &mut Reader<'_>, value: &Value<'_>) -> Vec<(Located<String>, Located<String>)> {
    let members = reader.members(value, "write { resource = \"https://api.acme.example\" }");
    let parameter = |(name, value): (Located<&str>, Value<'_>)| {
        let text = reader.text(&value)?.to_owned();
        Some((Located { value: name.value.to_owned(), span: name.span }, value.at(text)))
    };
    members.into_iter().filter_map(parameter).collect()
}

fn text(reader: &mut Reader<'_>, table: &Table<'_>, key: &str) -> Option<Located<String>> {
    table.one(reader, key, |reader, value| {
        let text = reader.text(value)?.to_owned();
        if text.is_empty() {
            let problem = Problem::at(value.span, format!("`{}` is empty", value.key));
            reader.problems.push(problem.help("write it, or leave it out"));
            return None;
        }
        Some(value.at(text))
    })
}
