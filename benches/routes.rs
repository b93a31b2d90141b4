//! Measures the CPU time to find a route among few and among many, and to read and compile many routes.
//! What do a hundred thousand routes cost?
//!
//! `cargo bench --bench routes`

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

mod support;

use std::hint::black_box;
use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;
use outgate::config::{self, Config};
use outgate::names::{ClientName, Host, TenantName};
use outgate::policy;

const COUNTS: [usize; 4] = [10, 1_000, 100_000, 1_000_000];
/// The number of files that contain the largest table of routes.
const FILES: usize = 1_000;
const LOOKUPS: u32 = 10_000;
/// The number of distinct routes that a busy client uses.
const HOT: usize = 10;

/// The property in which the routes differ. They share the others.
#[derive(Clone, Copy)]
enum DifferBy {
    Hosts,
    /// Paths of one host.
    Paths,
    /// Tenants of one host and path.
    Tenants,
}

impl DifferBy {
    fn route(self, n: usize) -> String {
        match self {
            Self::Hosts => format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h{n}.acme.com\"]\n"),
            Self::Paths => format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h.acme.com\"]\npaths = [\"/in/{n}/\"]\n"),
            Self::Tenants => {
                format!("[[routes]]\nname = \"r{n}\"\nhosts = [\"h.acme.com\"]\ntenants = [\"t{n}\"]\n")
            }
        }
    }

    /// Returns host, path and tenant of a webhook that matches route `n`.
    fn request(self, n: usize) -> (Host, String, Option<TenantName>) {
        let host = |name: String| Host::Name(name.into());
        match self {
            Self::Hosts => (host(format!("h{n}.acme.com")), "/in".into(), None),
            Self::Paths => (host("h.acme.com".into()), format!("/in/{n}/x"), None),
            Self::Tenants => (host("h.acme.com".into()), "/in".into(), Some(TenantName::new(format!("t{n}")))),
        }
    }
}

const HEAD: &str = "[egress.default]\nranges = [\"192.0.2.1\"]\n[clients.c]\nnetworks = [\"10.0.0.0/8\"]\n\
                    tenants = [\"*\"]\n";

/// A folder that is removed with the value.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Writes the routes into `files` files, which a main file includes.
fn write_files(differ_by: DifferBy, count: usize, files: usize) -> Folder {
    let folder = Folder(std::env::temp_dir().join(format!("outgate-bench-routes-{}", std::process::id())));
    std::fs::create_dir_all(folder.0.join("conf.d")).unwrap();
    std::fs::write(folder.0.join("config.toml"), format!("include = [\"conf.d/*.toml\"]\n{HEAD}")).unwrap();
    let each = count.div_ceil(files);
    for file in 0..files {
        let text: String = (file * each..count.min((file + 1) * each)).map(|n| differ_by.route(n)).collect();
        std::fs::write(folder.0.join(format!("conf.d/{file:04}.toml")), text).unwrap();
    }
    folder
}

fn load(folder: &Folder) -> Config {
    match config::load(&folder.0.join("config.toml")) {
        Ok(loaded) => loaded.config,
        Err(rejected) => panic!("{}", config::render(&rejected.problems, &rejected.sources, false)),
    }
}

fn lookups(differ_by: DifferBy, name: &str) {
    for count in COUNTS {
        let folder = write_files(differ_by, count, count.div_ceil(1_000).min(FILES));
        let config = load(&folder);
        let before = resident();
        let Ok((plan, _)) = policy::compile(&config, Timestamp::now()) else { panic!("not valid") };
        let bytes = resident().saturating_sub(before) / count as u64;
        drop(config);
        let client = ClientName::new("c");
        // Warm lookups repeat a few routes, like busy customers. Cold lookups spread over the whole table: each one
        // loads three or four cache lines from memory, whatever the data structure.
        let [warm, cold] = [HOT, LOOKUPS as usize].map(|distinct| {
            let request = |n: usize| differ_by.request((n % distinct).wrapping_mul(7_919) % count);
            let requests: Vec<_> = (0..LOOKUPS as usize).map(request).collect();
            let mut requests = requests.iter().cycle();
            let cost = support::microseconds(LOOKUPS, || {
                let (host, path, tenant) = requests.next().unwrap();
                assert!(
                    plan.routes
                        .select(&client, tenant.as_ref(), black_box(host), path)
                        .is_ok_and(|route| route.is_some())
                );
            });
            cost * 1e3
        });
        println!("{name:<10} {count:>9} {warm:>9.0} {cold:>9.0} {bytes:>9}");
    }
}

fn main() {
    println!("{:<10} {:>9} {:>9} {:>9} {:>9}", "apart by", "routes", "warm, ns", "cold, ns", "bytes");
    lookups(DifferBy::Hosts, "hosts");
    lookups(DifferBy::Paths, "paths");
    lookups(DifferBy::Tenants, "tenants");
    let folder = write_files(DifferBy::Hosts, 100_000, FILES);
    let start = Instant::now();
    let config = load(&folder);
    let read = start.elapsed();
    let start = Instant::now();
    let compiled = policy::compile(&config, Timestamp::now());
    let compile_time = start.elapsed();
    assert!(compiled.is_ok());
    println!("100,000 routes in {FILES} files: read in {read:.2?}, compiled in {compile_time:.2?}");
    let start = Instant::now();
    drop((compiled, config));
    println!("and freed in {:.2?}", start.elapsed());
}

/// Returns the resident memory of this process in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let kib = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    kib.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}
