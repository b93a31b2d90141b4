//! Rules of imports: a module uses lower layers, and the modules of one folder use each other in one direction.
//! Which modules may a file use?

use std::collections::{BTreeMap, BTreeSet};

use super::reading::{File, sources};
use super::{assert_found, assert_kept};

/// The layer of each module. A module may use lower layers, and its own.
const LAYERS: &[(&str, u8)] = &[
    ("names", 0),
    ("host", 0),
    ("http_message", 0),
    ("digest", 0),
    ("lru", 0),
    ("panics", 0),
    ("single_flight", 0),
    ("config", 1),
    ("policy", 2),
    ("history", 2),
    ("audit", 2),
    ("capture_store", 2),
    ("net", 3),
    ("state", 4),
    ("delivery", 5),
    ("server", 6),
    ("cli", 7),
    ("app", 7),
    ("reload", 7),
    ("sandbox", 7),
    ("upkeep", 7),
    ("fuzz", 7),
    ("simulation", 7),
    ("sysexits", 7),
    ("lib", 7),
    ("main", 7),
];

/// A module's path from the root of the crate.
type Path = Vec<String>;

fn layer(module: &str) -> Option<u8> {
    LAYERS.iter().find(|(name, _)| *name == module).map(|(_, layer)| *layer)
}

fn layers(file: &File) -> Vec<String> {
    let own = layer(&file.top_module());
    let mut violations = Vec::new();
    for (line, path) in file.uses(&file.code) {
        match (own, layer(&path[0])) {
            (Some(own), Some(used)) if used <= own => {}
            (_, None) => violations.push(format!("line {line}: `crate::{}` is in no layer", path[0])),
            _ => violations.push(format!("line {line}: `crate::{}` is not below `{}`", path[0], file.top_module())),
        }
    }
    violations
}

/// Returns the layers that have no module.
fn empty_layers(files: &[File]) -> Vec<String> {
    let modules: BTreeSet<String> = files.iter().map(File::top_module).collect();
    let is_empty = |name: &&str| !modules.contains(*name);
    LAYERS.iter().map(|(name, _)| *name).filter(is_empty).map(|name| format!("there is no module {name}")).collect()
}

/// Finds modules of one folder that use each other in a cycle, in production code, at every depth.
///
/// A module stands for itself and everything below it. A name that a folder re-exports stands for the module that defines
/// it. The `mod.rs` of a folder gathers the folder's modules and is none of them.
fn cycles(files: &[File]) -> Vec<String> {
    let modules: BTreeSet<Path> = files.iter().flat_map(|file| prefixes(&file.module())).collect();
    let reexports: BTreeMap<Path, Path> = files.iter().flat_map(File::reexports).collect();
    let mut folders: BTreeMap<Path, BTreeSet<(String, String)>> = BTreeMap::new();
    for file in files {
        let from = file.module();
        for (_, path) in file.uses(&file.production) {
            for to in [resolve(&path, &modules, &reexports), path] {
                let depth = from.iter().zip(&to).take_while(|(from, to)| from == to).count();
                if depth < from.len() && depth < to.len() && modules.contains(&to[..=depth]) {
                    let edges = folders.entry(to[..depth].to_vec()).or_default();
                    edges.insert((from[depth].clone(), to[depth].clone()));
                }
            }
        }
    }
    let in_folder = |(folder, edges): (Path, BTreeSet<(String, String)>)| {
        let folder = if folder.is_empty() { "crate".to_owned() } else { folder.join("::") };
        cyclic_edges(edges).into_iter().map(move |(from, to)| format!("{folder}: {from} uses {to}, which uses it"))
    };
    folders.into_iter().flat_map(in_folder).collect()
}

fn prefixes(path: &[String]) -> Vec<Path> {
    (1..=path.len()).map(|length| path[..length].to_vec()).collect()
}

/// Returns the path of the item itself. A re-export may be re-exported, so the number of steps is bounded.
fn resolve(path: &[String], modules: &BTreeSet<Path>, reexports: &BTreeMap<Path, Path>) -> Path {
    let mut path = path.to_vec();
    for _ in 0..8 {
        let named = (1..=path.len())
            .rev()
            .find(|length| !modules.contains(&path[..*length]) && reexports.contains_key(&path[..*length]));
        let Some(length) = named else { break };
        path = [&reexports[&path[..length]][..], &path[length..]].concat();
    }
    path
}

/// Returns the edges of cycles, which are those whose end leads back to their start.
fn cyclic_edges(edges: BTreeSet<(String, String)>) -> Vec<(String, String)> {
    let leads_back = |(start, end): &(String, String)| {
        let mut reached = BTreeSet::from([end]);
        loop {
            let count = reached.len();
            let next: Vec<_> = edges.iter().filter(|(from, _)| reached.contains(from)).map(|(_, to)| to).collect();
            reached.extend(next);
            if reached.contains(start) || reached.len() == count {
                return reached.contains(start);
            }
        }
    };
    edges.iter().filter(|edge| leads_back(edge)).cloned().collect()
}

#[test]
fn files_use_lower_layers_only() {
    assert_kept(&[layers]);
    assert_eq!(empty_layers(&sources()), [""; 0]);
}

#[test]
fn modules_have_no_import_cycle_at_any_depth() {
    let found = cycles(&sources());
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
}

#[test]
fn layers_find_each_violation() {
    assert_found(&[
        (layers, "src/policy/guard.rs", "use crate::net::dial;", 1),
        (layers, "src/policy/guard.rs", "use crate::{names::Host, state};", 1),
        (layers, "src/policy/guard.rs", "fn f() { crate::delivery::go() }", 1),
        (layers, "src/policy/guard.rs", "use super::super::net;", 1),
        (layers, "src/policy/sign/rfc9421.rs", "use super::super::egress; use super::Draft;", 0),
        (layers, "src/policy/guard.rs", "#[cfg(test)] mod tests { use super::super::egress; use super::*; }", 0),
        (layers, "src/policy/guard.rs", "use crate::{config::At, policy::{self, egress::Hop}};", 0),
        (layers, "src/policy/guard.rs", "// use crate::net;\nconst S: &str = \"crate::net\";", 0),
        (layers, "src/names.rs", "use crate::config::Config;", 1),
        (layers, "src/names.rs", "use crate::host::canonical;", 0),
        (layers, "src/server/mod.rs", "use crate::cellar::Wine;", 1),
        (layers, "src/main.rs", "use outgate::cellar::Wine; use outgate::app;", 1),
        (layers, "src/attic.rs", "use crate::names::Host;", 1),
    ]);
    assert_eq!(empty_layers(&[File::new("src/names.rs", "")]).len(), LAYERS.len() - 1);
}

#[test]
fn cycles_are_found_at_every_depth() {
    let count_of = |egress: &str, guard: &str, hmac: &str| {
        cycles(&[
            File::new("src/policy/mod.rs", "pub use sign::Signer; use crate::policy::egress::Pool;"),
            File::new("src/policy/egress.rs", egress),
            File::new("src/policy/guard.rs", guard),
            File::new("src/policy/sign/mod.rs", "pub use keys::Key; pub(crate) use hmac::{Mac as Code, Tag};"),
            File::new("src/policy/sign/hmac.rs", hmac),
            File::new("src/policy/sign/keys.rs", "use super::Tag;"),
        ])
        .len()
    };
    assert_eq!(count_of("use super::guard::Cleared;", "use crate::policy::Plan;", "use super::Draft;"), 0);
    assert_eq!(count_of("use super::guard::Cleared;", "use crate::policy::{egress};", "use super::super::egress;"), 2);
    assert_eq!(count_of("use super::guard;", "use super::sign;", "use super::super::egress;"), 3);
    assert_eq!(count_of("use super::guard::Cleared;", "fn f() { super::egress::g() }", ""), 2, "an inline path");
    assert_eq!(count_of("use super::Signer;", "", "fn f() -> crate::policy::egress::Hop {}"), 2, "a re-export");
    assert_eq!(count_of("", "", "use super::keys;"), 2, "two files of an inner folder");
    assert_eq!(count_of("", "", "use super::{Key};"), 2, "a re-export of an inner folder");
    assert_eq!(count_of("", "", "#[cfg(test)] mod tests { use super::super::keys; }"), 0, "tests");
}
