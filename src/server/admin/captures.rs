//! The sealed captures, for `outgate captures`: their list, their export and their erasure.
//! Which captures are there, who took them away, and which are erased for good?
//!
//! The proxy does this work, because it has the credentials of the store, and the audit log.

use std::io;
use std::sync::Arc;

use data_encoding::BASE64;
use http::StatusCode;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::problem::AdminProblem;
use super::resource::Query;
use crate::audit::{Actor, CAPTURE_ERASED, CAPTURE_EXPORTED};
use crate::capture_store::{ObjectDigest, ObjectName, Store, StoredCapture};
use crate::names::TenantName;
use crate::policy::capture::Capture;
use crate::state::Runtime;
use crate::state::observability::captures::LISTED_MAX;

/// The captures of one response: each has at most two bodies of 1 MiB.
const EXPORTED_MAX: usize = 4;

/// The captures of one section that match a query.
type Found = (Arc<Capture>, Store, Vec<StoredCapture>);

/// Returns the captures that match the parameters `capture`, `tenant` and `request_id`, and that follow `after`.
async fn find(runtime: &Runtime, query: &Query) -> Result<Vec<Found>, AdminProblem> {
    let [capture, id, after] = ["capture", "request_id", "after"].map(|name| query.text(name));
    let (tenant, after) = (query.text("tenant").map(TenantName::new), after.unwrap_or_default());
    let mut found = Vec::new();
    for section in &runtime.active_config().plan.captures {
        if capture.as_ref().is_some_and(|name| name != section.name.as_str()) {
            continue;
        }
        let opened = Arc::clone(section);
        // It reads the roots of the host.
        let store = tokio::task::spawn_blocking(move || Store::open(&opened.store, &opened.name)).await;
        let store = store.map_err(io::Error::other).flatten().map_err(|error| unusable(section, error))?;
        let mut captures = store.list(tenant.as_ref()).await.map_err(|error| unusable(section, error))?;
        captures.retain(|StoredCapture { name, .. }| {
            id.as_ref().is_none_or(|id| *id == name.request_id) && full_name(section, name) > after
        });
        found.push((Arc::clone(section), store, captures));
    }
    Ok(found)
}

/// Returns the first captures of one section that match a query. They are of one tenant.
async fn find_some(runtime: &Runtime, query: &Query, max: usize) -> Result<Option<Found>, AdminProblem> {
    // The empty name would select the captures of all tenants.
    if query.text("tenant").is_none_or(|tenant| tenant.is_empty()) {
        return Err(AdminProblem::field("tenant", "the parameter tenant is missing"));
    }
    let mut found = find(runtime, query).await?;
    found.iter_mut().for_each(|(.., captures)| captures.truncate(max));
    Ok(found.into_iter().find(|(.., captures)| !captures.is_empty()))
}

pub(super) async fn list(runtime: &Runtime, query: &Query) -> Result<Value, AdminProblem> {
    let found = find(runtime, query).await?;
    let listed = found.iter().flat_map(|(section, _, captures)| {
        captures.iter().map(|StoredCapture { name, size }| {
            json!({
                "capture": section.name.as_str(), "tenant": name.tenant.as_str(), "time": name.at,
                "request_id": name.request_id, "bytes": size, "name": full_name(section, name),
            })
        })
    });
    Ok(listed.collect())
}

/// Returns the sealed bytes of some captures of a tenant, after a record says who got them.
pub(super) async fn export(runtime: &Runtime, query: &Query, actor: Actor) -> Result<Value, AdminProblem> {
    let Some((section, store, captures)) = find_some(runtime, query, EXPORTED_MAX).await? else {
        return Ok(json!({ "objects": [] }));
    };
    let (mut objects, mut exported) = (Vec::new(), Vec::new());
    for StoredCapture { name, .. } in &captures {
        let sealed = store.get(name).await.map_err(|error| unusable(&section, error))?;
        objects.push(ObjectDigest::new(name, &sealed));
        exported.push(json!({ "name": full_name(&section, name), "sealed": BASE64.encode(&sealed) }));
    }
    let event = ObjectDigest::event(CAPTURE_EXPORTED, &section.name, &captures[0].name, &objects, Timestamp::now());
    let seq = runtime.audit.confirm(event.by(actor)).await.map_err(unrecorded)?;
    Ok(json!({ "seq": seq, "objects": exported }))
}

/// Erases some captures of a tenant, and returns the proof, which the audit log has, too.
pub(super) async fn erase(runtime: &Runtime, query: &Query, actor: Actor) -> Result<Value, AdminProblem> {
    runtime.audit.status().error().map_or(Ok(()), |error| Err(unrecorded(error)))?;
    let Some((section, store, captures)) = find_some(runtime, query, LISTED_MAX).await? else {
        return Ok(json!({ "objects": [] }));
    };
    let (objects, failed) = store.erase(&captures).await;
    let at = Timestamp::now();
    let event = ObjectDigest::event(CAPTURE_ERASED, &section.name, &captures[0].name, &objects, at).by(actor);
    let recorded = runtime.audit.confirm(event.clone()).await;
    let seq = recorded.map_err(|error| {
        runtime.audit.record(event); // it waits until the log can be written
        unrecorded(error)
    })?;
    Ok(json!({ "capture": section.name.as_str(), "seq": seq, "erased_at": at, "objects": objects, "failed": failed }))
}

fn full_name(section: &Capture, name: &ObjectName) -> String {
    format!("{}/{}", section.name, name.path())
}

fn unusable(section: &Capture, error: io::Error) -> AdminProblem {
    let message = format!("cannot use the store {} of captures.{}: {error}", section.store.display(), section.name);
    AdminProblem::new(StatusCode::SERVICE_UNAVAILABLE, message)
}

fn unrecorded(error: String) -> AdminProblem {
    AdminProblem::new(StatusCode::SERVICE_UNAVAILABLE, format!("audit_unwritable: {error}"))
}
