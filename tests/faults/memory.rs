//! A control group whose limit of memory is reached.
//! Do clients that fill the memory harm others, and does the kernel have to kill the process?
//!
//! Needs root and the memory controller (cgroups(7)): skipped where they are missing, required with
//! `OUTGATE_TEST_ALL=1` where the host mounts it.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bystander::{Fault, for_a_period, pick};
use crate::support::configuration::Config;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder};
use crate::support::{Client, Outgate, eventually, required};

/// The limit of the control group, and the length of each body.
const LIMIT: usize = 160 << 20;
const BODY: usize = 1 << 20;

/// A control group with a limit of memory. It is removed on drop: outgate has ended by then.
struct ControlGroup {
    folder: PathBuf,
}

impl ControlGroup {
    /// `None`: this host or this user cannot make one.
    fn new() -> Option<Self> {
        let name = format!("outgate-faults-{}", std::process::id());
        let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let own = groups.lines().find_map(|line| Some(line.split_once(":memory:/")?.1));
        // Version 2 gives no controller to a group whose parent has processes, unless the parent is the root.
        let versions =
            [(own, "/sys/fs/cgroup/memory", "memory.limit_in_bytes"), (Some(""), "/sys/fs/cgroup", "memory.max")];
        for (own, root, limit) in versions {
            let Some(own) = own else { continue };
            let folder = Path::new(root).join(own).join(&name);
            if fs::create_dir(&folder).is_err() {
                continue;
            }
            let group = Self { folder };
            if fs::write(group.folder.join(limit), LIMIT.to_string()).is_ok() {
                return Some(group);
            }
        }
        None
    }

    /// Returns the bytes of the group that the kernel cannot free, such as heaps: not those of files.
    fn anonymous(&self) -> usize {
        let statistics = fs::read_to_string(self.folder.join("memory.stat")).unwrap();
        let find = |name: &str| statistics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        find("rss").or(find("anon")).unwrap().parse().unwrap()
    }
}

impl Drop for ControlGroup {
    fn drop(&mut self) {
        // The kernel moves the last process out a moment after its end.
        for _ in 0..100 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20)); // a drop must not panic, as `eventually` does
        }
    }
}

#[test]
fn memory_limit_refuses_bodies_beyond_a_quarter_of_it_and_no_other_delivery() {
    let Some(group) = ControlGroup::new() else {
        let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").unwrap_or_default();
        let has_version_2 = controllers.split_whitespace().any(|controller| controller == "memory");
        let has_controller = has_version_2 || Path::new("/sys/fs/cgroup/memory").exists();
        assert!(!required() || !has_controller, "this user cannot make a control group with a limit of memory");
        eprintln!("skipped: needs root and the memory controller of control groups");
        return;
    };
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let text: Config = config(&good, &plain, "").set("routes.signed.body_max", "2 MiB");
    let folder = folder(&pki);
    let path = folder.write_config("config.toml", &text);
    let mut command = Command::new("sh");
    command.args(["-c", "echo $$ >\"$0\"/cgroup.procs && exec \"$1\" run --config \"$2\""]);
    command.arg(&group.folder).arg(env!("CARGO_BIN_EXE_outgate")).arg(path);
    let outgate = Outgate::start(command, folder);
    let fault = Fault {
        name: "memory limit of the control group reached",
        harmed: "clients whose bodies exceed a quarter of the memory",
        reported: "records, outgate_deliveries_total{code=\"concurrency_limited\"}",
    };
    let (signed, unsigned) =
        (format!("https://hook.example:{}/in", good.port()), format!("http://plain.example:{}/in", plain.port()));
    let head = format!("POST {signed} HTTP/1.1\r\nHost: h\r\nContent-Length: {BODY}\r\n\r\n");
    fault.run_by_law(&outgate, &unsigned, &[], |harm| {
        // Each client sends its body but the last byte, and waits.
        let mut clients: Vec<Client> = Vec::new();
        for _ in 0..pick(200, 1000) {
            let mut client = Client::connect(outgate.proxy);
            client.send(&head);
            client.try_send(vec![b'x'; BODY - 1]);
            clients.push(client);
        }
        // The bodies that fit are held, and the others are refused.
        let fit = LIMIT / 4 / (BODY - (16 << 10));
        for_a_period(|| assert_eq!(harm.send(outgate.proxy, &unsigned).status, 200));
        let held = |client: &Client| !client.has_input();
        eventually("the other clients are refused", || clients.iter().filter(|client| held(client)).count() <= fit);
        println!("heaps take {} of {LIMIT} bytes of the control group", group.anonymous());
        let mut delivered = 0;
        for mut client in clients {
            if held(&client) {
                client.send("x");
            }
            let response = client.response();
            match response.code() {
                "" => delivered += 1,
                code => assert_eq!((response.status, code), (429, "concurrency_limited"), "{response:?}"),
            }
            harm.add(if response.code().is_empty() { "delivered" } else { "concurrency_limited" }, 1);
        }
        assert!((1..=fit).contains(&delivered), "{delivered} bodies of {fit} that fit");
    });
    // The memory is free again: as many bodies fit as before.
    for _ in 0..2 {
        assert_eq!(outgate.post(&signed, "", &"x".repeat(BODY)).status, 200);
    }
}
