//! The worker threads of the process.
//! Does the process have `server.workers` threads?
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, eventually};

/// Returns the number of threads with this name (proc(5): /proc/pid/task/tid/comm). A thread may end during the count.
fn threads(outgate: &Outgate, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", outgate.pid())).unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|found| found.trim() == name).count()
}

/// tokio gives workers and short-lived blocking threads the same name. One worker is the main thread.
#[test]
fn server_workers_is_the_number_of_worker_threads() {
    let plain = Receiver::plain(ok());
    for (workers, expected) in [(1, 0), (2, 2), (5, 5)] {
        let config = config(&plain, &plain, "").add("server.workers", workers);
        let outgate = Outgate::run(folder(&Pki::new()), &config);
        eventually(&format!("{expected} threads of tokio"), || threads(&outgate, "tokio-rt-worker") == expected);
        let url = format!("http://plain.example:{}/in", plain.port());
        assert_eq!(outgate.post(&url, "", "x").status, 200, "{workers} workers");
    }
}
