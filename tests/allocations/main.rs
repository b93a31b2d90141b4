//! The memory that one delivery allocates.
//! How often does a keep-alive delivery with one HMAC signer call the allocator?
//!
//! The proxy runs in this process, on one thread, because an allocator can count only its own process. The count does not
//! depend on the load of the machine.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    clippy::print_stderr,
    reason = "a test plays client and target"
)]

#[path = "../it/support/mod.rs"]
mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use jiff::Timestamp;
use outgate::app::{Proxy, StartupConfig};
use outgate::{config, policy};
use tokio::sync::oneshot;

use support::receiver::{Receiver, ok};
use support::{Client, Folder, TEST_TIMEOUT, post};

/// The calls of the allocator that one delivery makes, at most. A call that resizes a block counts. A change may only lower it.
const BUDGET: usize = 8;

const WARM_UP: usize = 200;
const DELIVERIES: usize = 1000;

/// Calls of the allocator on the threads that count.
static CALLS: AtomicUsize = AtomicUsize::new(0);

thread_local! {
    static IS_COUNTED: Cell<bool> = const { Cell::new(false) };
}

struct CountingAllocator;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

fn count() {
    if IS_COUNTED.get() {
        CALLS.fetch_add(1, Ordering::Relaxed);
    }
}

#[allow(
    unsafe_code,
    clippy::undocumented_unsafe_blocks,
    reason = "every call goes to the system's allocator unchanged"
)]
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        unsafe { System.realloc(old, layout, size) }
    }
    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        unsafe { System.dealloc(old, layout) }
    }
}

fn configuration(port: u16) -> String {
    format!(
        r#"
        [server]
        listen = ["127.0.0.1:0"]
        allow_anonymous = true
        [admin]
        listen = []
        [egress.default]
        ranges = ["127.0.0.2/32"]
        [[routes]]
        name = "all"
        hosts = ["*"]
        egress = "default"
        sign = ["platform"]
        limits = ["all"]
        plaintext = "allow"
        [signers.platform]
        scheme = "hmac"
        keys = [{{ id = "k1", secret = "file:{{dir}}/key" }}]
        headers = ["X-Signature: sha256={{signature}}"]
        [limits.all]
        rate = "1000000/s"
        burst = 1000000
        per = ["host"]
        [guard]
        allow = ["127.0.0.1/32"]
        ports = [{port}]
        [resolver.hosts]
        "hook.example" = ["127.0.0.1"]
        [log]
        deliveries = "file:{{dir}}/deliveries.log"
        "#
    )
}

/// Starts the proxy on a thread that counts. Returns its address, and the sender that stops it.
fn start_proxy(text: &str, folder: &Folder) -> (SocketAddr, oneshot::Sender<()>, std::thread::JoinHandle<()>) {
    let Ok(config) = config::parse(text, &folder.path("config.toml")) else { panic!("{text}") };
    let config = config.config;
    let Ok((plan, warnings)) = policy::compile(&config, Timestamp::now()) else { panic!("{text}") };
    let start = StartupConfig { path: None, config, plan, warnings, reserved_ports: Default::default() };
    let (started, address) = mpsc::channel();
    let (stop, stopped) = oneshot::channel();
    let thread = std::thread::spawn(move || {
        let tokio_runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio_runtime.block_on(async {
            let Ok(proxy) = Proxy::start(start).await else { panic!("the proxy does not start") };
            started.send(proxy.addresses[0].parse().unwrap()).unwrap();
            IS_COUNTED.set(true);
            let _ = stopped.await;
            IS_COUNTED.set(false);
            proxy.stop().await;
        });
    });
    (address.recv_timeout(TEST_TIMEOUT).unwrap(), stop, thread)
}

#[test]
fn delivery_with_one_hmac_signer_stays_within_its_budget_of_allocations() {
    let folder = Folder::new();
    folder.write("key", "0123456789abcdef0123456789abcdef");
    let target = Receiver::plain(ok());
    let (proxy, stop, thread) = start_proxy(&folder.placed(&configuration(target.port())), &folder);

    let mut client = Client::connect(proxy);
    let fields = "User-Agent: platform/1\r\nContent-Type: application/json\r\nAccept: */*\r\n";
    let request = post(&format!("http://hook.example:{}/in", target.port()), fields, &"x".repeat(1024));
    let mut deliver = |count: usize| {
        for _ in 0..count {
            client.send(&request);
            let response = client.response();
            assert_eq!(response.status, 200, "{response:?}");
        }
    };
    deliver(WARM_UP);
    let before = CALLS.load(Ordering::Relaxed);
    deliver(DELIVERIES);
    let calls = CALLS.load(Ordering::Relaxed) - before;
    stop.send(()).unwrap();
    thread.join().unwrap();
    assert!(target.requests().iter().all(|request| request.field("x-signature").starts_with("sha256=")));
    // Other tasks of the proxy, such as its timers, allocate now and then.
    let each = (calls + DELIVERIES / 2) / DELIVERIES;
    assert!(each <= BUDGET, "a delivery makes {each} calls of the allocator, and its budget is {BUDGET}: {calls}");
}
