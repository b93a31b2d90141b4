//! Reads the section `publish`: the listener for customers, and the key that signs what they get.
//! Where can customers read the ranges, and which key signs them?

use super::audit::{default_origin, parse_origin};
use super::reader::{Reader, Table};
use super::{Bind, Located, Secret, listener, schema, secret};

#[derive(Clone, Debug)]
pub struct Publish {
    /// Empty: there is no listener.
    pub listen: Vec<Located<Bind>>,
    /// The Ed25519 key, in PEM.
    pub sign: Option<Located<Secret>>,
    /// The name of the publication, and of its key.
    pub origin: String,
}

impl Default for Publish {
    fn default() -> Self {
        Self { listen: Vec::new(), sign: None, origin: default_origin("egress") }
    }
}

pub(super) fn read_publish(reader: &mut Reader<'_>, file: &Table<'_>) -> Publish {
    let table = file.section(reader, "publish", &schema::PUBLISH);
    let listen = table.read_list(reader, "listen", None, listener::read_publish_listen);
    let sign = table.read(reader, "sign", secret::read_key);
    let origin = table.read(reader, "origin", |reader, value| reader.parse(value, parse_origin));
    let default = Publish::default();
    Publish { listen: listen.unwrap_or_default(), sign, origin: origin.map_or(default.origin, |origin| origin.value) }
}
