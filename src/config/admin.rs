//! Reads `[admin]`: the listeners for operators, and the users who may call them over TCP.
//! Where is the admin listener, and who may read or change the proxy through it?

use std::collections::BTreeMap;

use serde::Deserialize;

use super::problem::Problem;
use super::reader::{Reader, Table, Value};
use super::{Bind, Listen, Located, listener, named_sections, schema, units};
use crate::host;
use crate::names::Host;

#[derive(Clone, Debug)]
pub struct Admin {
    pub listen: Vec<Located<Bind>>,
    /// Where load balancers read the weight over TCP. Empty: there is no such listener.
    pub agent: Vec<Located<Bind>>,
    /// Names that a request over TCP may have in Host, besides addresses and `localhost`.
    pub hosts: Vec<Host>,
    /// Users by name. A unix socket needs none: its permissions decide.
    pub users: BTreeMap<String, Located<AdminUser>>,
}

/// A user who calls the admin listener over TCP.
#[derive(Clone, Debug)]
pub struct AdminUser {
    pub role: AdminRole,
    /// SHA-256 of each token.
    pub tokens: Vec<Located<[u8; 32]>>,
    /// Subject alternative names.
    pub certificates: Vec<Located<String>>,
}

/// The rights of a user. A later role has those of the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminRole {
    /// Reads.
    Viewer,
    /// Reads and changes.
    Operator,
}

impl AdminRole {
    const CHOICES: [(&str, Self); 2] = [("viewer", Self::Viewer), ("operator", Self::Operator)];

    pub fn as_str(self) -> &'static str {
        Self::CHOICES.iter().find(|(_, role)| *role == self).map_or("", |(name, _)| name)
    }
}

pub(super) fn read_admin(reader: &mut Reader<'_>, file: &Table<'_>) -> Admin {
    let table = file.section(reader, "admin", &schema::ADMIN);
    let listen = table.read_list(reader, "listen", None, listener::read_admin_listen);
    let agent = table.read_list(reader, "agent", None, listener::read_agent_listen).unwrap_or_default();
    let hosts = table.read_list(reader, "hosts", None, read_admin_host).unwrap_or_default();
    let default = || Bind::new(Listen::Tcp(([127, 0, 0, 1], 4751).into()));
    let listen = listen.unwrap_or_else(|| vec![Located { value: default(), span: table.span }]);
    let users = reader.named_tables(std::slice::from_ref(&table), "users", &schema::ADMIN_USER);
    let users = users.into_iter().filter_map(|(name, table)| Some((name.to_owned(), read_user(reader, &table)?)));
    Admin { listen, agent, hosts, users: users.collect() }
}

fn read_user(reader: &mut Reader<'_>, table: &Table<'_>) -> Option<Located<AdminUser>> {
    table.require(reader, "role", "write role = \"viewer\" for a user who only reads, or role = \"operator\"");
    let role = table.read(reader, "role", |reader, value| reader.parse_choice(value, &AdminRole::CHOICES));
    let tokens = table.read_list(reader, "tokens", None, |reader, value| reader.parse(value, units::token_hash));
    let certificates = table.read_list(reader, "certificates", None, named_sections::read_word);
    let (tokens, certificates) = (tokens.unwrap_or_default(), certificates.unwrap_or_default());
    Some(Located { value: AdminUser { role: role?.value, tokens, certificates }, span: table.span })
}

fn read_admin_host(reader: &mut Reader<'_>, value: &Value<'_>) -> Option<Host> {
    let text = reader.text(value)?;
    match host::canonical(text) {
        Ok(host @ Host::Name(_)) => Some(host),
        Ok(Host::Ip(_)) => {
            let problem = Problem::at(
                value.span,
                format!("`admin.hosts` need not list {text}: the admin listener accepts every address"),
            );
            reader.problems.push(problem.help("remove the entry"));
            None
        }
        Err(error) => {
            let problem = Problem::at(value.span, format!("`{text}` is not a host name")).label(error.to_string());
            reader.problems.push(problem.help("write the name that scrapers send in Host, without a port"));
            None
        }
    }
}
