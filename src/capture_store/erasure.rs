//! The erasure of captures, with its proof for the audit log.
//! Which sealed bytes existed, and exist no more?

use std::io;

use data_encoding::HEXLOWER;
use jiff::Timestamp;
use object_store::ObjectStoreExt;
use serde::Serialize;
use serde_json::json;

use super::{ObjectName, Store, StoredCapture};
use crate::audit::{Event, EventType};
use crate::digest::sha256;
use crate::names::{CaptureName, pluralize};

/// A sealed capture that was erased or handed over. A copy of it is recognised by its digest.
#[derive(Serialize)]
pub struct ObjectDigest {
    pub name: String,
    /// SHA-256 of the sealed bytes, in hexadecimal digits.
    pub sha256: String,
}

impl ObjectDigest {
    pub fn new(name: &ObjectName, sealed: &[u8]) -> Self {
        Self { name: name.path(), sha256: HEXLOWER.encode(&sha256(sealed)) }
    }

    /// Returns the audit record of what happened to captures of the tenant of `name`.
    pub fn event(what: EventType, capture: &CaptureName, name: &ObjectName, objects: &[Self], at: Timestamp) -> Event {
        let (count, tenant) = (objects.len(), name.tenant.as_str());
        let action = what.name.strip_prefix("capture.").unwrap_or(what.name);
        let description = format!("{} of tenant {tenant} {action}", pluralize(count as u64, "capture"));
        let event = Event::new(what, format!("captures.{capture}"), at, description);
        event.with("tenant", tenant).with("count", count).with("objects", json!(objects))
    }
}

impl Store {
    /// Erases captures. Returns those that were erased, and the names and errors of those that could not be. It is no
    /// error if the store does not have one.
    pub async fn erase(&self, captures: &[StoredCapture]) -> (Vec<ObjectDigest>, Vec<(String, String)>) {
        let (mut erased, mut failed) = (Vec::new(), Vec::new());
        for StoredCapture { name, .. } in captures {
            match self.erase_one(name).await {
                Ok(object) => erased.push(object),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => failed.push((name.path(), error.to_string())),
            }
        }
        (erased, failed)
    }

    async fn erase_one(&self, name: &ObjectName) -> io::Result<ObjectDigest> {
        let object = ObjectDigest::new(name, &self.get(name).await?);
        self.objects.delete(&name.location()?).await?;
        Ok(object)
    }
}
