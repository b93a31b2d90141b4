//! The compilation of the sections `captures`.
//! Is every capture for routes that exist, and for tenants that can open it?

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Capture, Recipients};
use crate::config::problem::closest_match;
use crate::config::{self, Config, Located, Problem, WarningCode};
use crate::names::{CaptureName, TenantName};

pub(in crate::policy) fn compile(config: &Config, problems: &mut Vec<Problem>) -> Vec<Arc<Capture>> {
    let mut captures = Vec::new();
    for (name, Located { value: section, .. }) in &config.captures {
        let routes = || config.routes.iter().map(|route| route.name.value.as_str());
        for route in section.routes.iter().filter(|route| !routes().any(|name| name == route.value)) {
            let near = closest_match(&route.value, routes());
            let help = near.map_or("write the `name` of a route".to_owned(), |near| format!("did you mean {near:?}?"));
            problems.push(Problem::at(route.span, format!("no route is named {:?}", route.value)).help(help));
        }
        // Without them, the section has a problem already.
        let (Some(until), Some(store)) = (&section.until, &section.store) else { continue };
        let recipients = compile_recipients(name, section, problems);
        let (store, until) = (store.value.clone(), until.value);
        let section = config::Capture { recipients: BTreeMap::new(), ..section.clone() };
        captures.push(Arc::new(Capture { name: name.clone(), section, store, until, recipients }));
    }
    captures
}

/// Compiles the recipients of each tenant. A file with a problem affects only its tenant, of whom nothing is captured.
fn compile_recipients(
    name: &CaptureName,
    section: &config::Capture,
    problems: &mut Vec<Problem>,
) -> BTreeMap<TenantName, Arc<Recipients>> {
    let mut recipients = BTreeMap::new();
    for (tenant, (path, content)) in &section.recipients {
        match content.as_deref().map_err(String::clone).and_then(Recipients::parse) {
            Ok(parsed) => drop(recipients.insert(tenant.clone(), Arc::new(parsed))),
            Err(reason) => {
                let span = section.store.as_ref().map(|store| store.span);
                let what = format!("{} {reason}: the capture {name} has nothing of its tenant", path.display());
                let help = "write one age recipient per line: age1…, ssh-ed25519 … or ssh-rsa …";
                problems.push(Problem::warning(WarningCode::CaptureRecipients, span, what).help(help));
            }
        }
    }
    recipients
}
