//! Measures the time to read and compile the signing keys of ten thousand tenants: at the start, and after one change.
//! What does a `key_dir` cost?
//!
//! `cargo bench --bench tenants`

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a benchmark that cannot go on ends"
)]

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use outgate::config::{self, Config, KeyDirs};
use outgate::policy::{self, Plan, sign};

const TENANTS: usize = 10_000;

/// Rounds. The fastest round has the least noise from other processes.
const ROUNDS: usize = 5;

/// Longer than the resolution of file times: older files count as settled.
const SETTLED: Duration = Duration::from_secs(4);

/// Scheme and algorithm: the key that is cheapest to read, and two key pairs.
const SIGNERS: &[(&str, &str)] =
    &[("standard-webhooks", "hmac-sha256"), ("standard-webhooks", "ed25519"), ("rfc9421", "ecdsa-p256-sha256")];

fn best<T>(mut work: impl FnMut() -> T) -> (T, f64) {
    let timed = |_| {
        let start = Instant::now();
        let result = work();
        (result, start.elapsed().as_secs_f64() * 1e3)
    };
    (0..ROUNDS).map(timed).min_by(|(_, one), (_, other)| one.total_cmp(other)).unwrap()
}

fn read(path: &Path, previous_dirs: &KeyDirs) -> Config {
    let Ok(loaded) = config::load_incremental(path, previous_dirs) else { panic!("the configuration is not valid") };
    loaded.config
}

fn compile(config: &Config, previous: Option<&Plan>) -> Plan {
    let Ok((plan, _)) = policy::recompile(config, previous, Timestamp::now()) else { panic!("it is not valid") };
    plan
}

fn main() {
    let folder = std::env::temp_dir().join(format!("outgate-bench-{}", std::process::id()));
    println!("{TENANTS} tenants, ms: at the start, and after one has changed");
    println!(
        "{:<20} {:<20} {:>10} {:>10} {:>10} {:>10}",
        "scheme", "algorithm", "read", "compiled", "read", "compiled"
    );
    for (scheme, algorithm) in SIGNERS {
        let new = || sign::new_key(scheme, Some(algorithm)).unwrap();
        for i in 0..TENANTS {
            let tenant = folder.join(format!("keys/tenant-{i}"));
            fs::create_dir_all(&tenant).unwrap();
            fs::write(tenant.join("k1.key"), new().as_str()).unwrap();
        }
        let path = folder.join("config.toml");
        let text = format!(
            "[egress.default]\nranges = [\"192.0.2.1\"]\n[signers.s]\nscheme = {scheme:?}\nkey_dir = \"keys\"\n"
        );
        fs::write(&path, text).unwrap();
        std::thread::sleep(SETTLED);
        let (config, read_all) = best(|| read(&path, &KeyDirs::new()));
        let (plan, compiled_all) = best(|| compile(&config, None));
        fs::write(folder.join("keys/tenant-1/k1.key"), new().as_str()).unwrap();
        let (changed, read_one) = best(|| read(&path, &config.key_dirs));
        let (next, compiled_one) = best(|| compile(&changed, Some(&plan)));
        assert!(plan.signers["s"].tenants() == Some(TENANTS) && next.signers["s"].tenants() == Some(TENANTS));
        assert_ne!(config.digest, changed.digest);
        println!(
            "{scheme:<20} {algorithm:<20} {read_all:>10.1} {compiled_all:>10.1} {read_one:>10.1} {compiled_one:>10.1}"
        );
        fs::remove_dir_all(&folder).unwrap();
    }
}
