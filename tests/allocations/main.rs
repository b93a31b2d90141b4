//! The memory that one delivery allocates.
//! How often does a keep-alive delivery with one HMAC signer call the allocator?
//!
//! The proxy runs in this process, on one thread, because an allocator can count only its own process. The count does not
//! depend on the load of the machine.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a test plays client and target, and may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use jiff::Timestamp;
use outgate::app::{Proxy, StartupConfig};
use outgate::{config, policy};
use tokio::sync::oneshot;

/// The calls of the allocator that one delivery makes, at most. A call that resizes a block counts. A change may only lower it.
const BUDGET: usize = 34;

const WARM_UP: usize = 200;
const DELIVERIES: usize = 1000;
const TIMEOUT: Duration = Duration::from_secs(30);

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

#[allow(unsafe_code, reason = "the trait is unsafe; every call goes to the system's allocator unchanged")]
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

/// Reads one HTTP message with a Content-Length.
fn read_message(reader: &mut impl BufRead) -> Option<String> {
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let before = head.len();
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
        let line = head[before..].trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        length = line.strip_prefix("content-length: ").map_or(length, |text| text.parse().unwrap());
    }
    reader.read_exact(&mut vec![0; length]).ok()?;
    Some(head)
}

/// Starts a target that accepts one connection, and responds to each signed request on it.
fn start_target() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut stream = listener.accept().unwrap().0;
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        while let Some(head) = read_message(&mut reader) {
            assert!(head.contains("x-signature: sha256="), "{head}");
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok").unwrap();
        }
    });
    address
}

fn configuration(folder: &Path, target: SocketAddr) -> String {
    let (folder, port) = (folder.display(), target.port());
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
        keys = [{{ id = "k1", secret = "file:{folder}/key" }}]
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
        deliveries = "file:{folder}/deliveries.log"
        "#
    )
}

/// Starts the proxy on a thread that counts. Returns its address, and the sender that stops it.
fn start_proxy(text: &str, folder: &Path) -> (SocketAddr, oneshot::Sender<()>, std::thread::JoinHandle<()>) {
    let Ok(config) = config::parse(text, &folder.join("config.toml")) else { panic!("{text}") };
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
    (address.recv_timeout(TIMEOUT).unwrap(), stop, thread)
}

#[test]
fn delivery_with_one_hmac_signer_stays_within_its_budget_of_allocations() {
    let folder = std::env::temp_dir().join(format!("outgate-allocations-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("key"), "0123456789abcdef0123456789abcdef").unwrap();
    let target = start_target();
    let (proxy, stop, thread) = start_proxy(&configuration(&folder, target), &folder);

    let mut client = TcpStream::connect(proxy).unwrap();
    client.set_read_timeout(Some(TIMEOUT)).unwrap();
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let request = format!(
        "POST http://hook.example:{}/in HTTP/1.1\r\nHost: hook.example\r\nUser-Agent: platform/1\r\n\
         Content-Type: application/json\r\nAccept: */*\r\nContent-Length: 1024\r\n\r\n{}",
        target.port(),
        "x".repeat(1024)
    );
    let mut deliver = |count: usize| {
        for _ in 0..count {
            client.write_all(request.as_bytes()).unwrap();
            let head = read_message(&mut reader).unwrap();
            assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        }
    };
    deliver(WARM_UP);
    let before = CALLS.load(Ordering::Relaxed);
    deliver(DELIVERIES);
    let calls = CALLS.load(Ordering::Relaxed) - before;
    stop.send(()).unwrap();
    thread.join().unwrap();
    std::fs::remove_dir_all(&folder).unwrap();
    // Other tasks of the proxy, such as its timers, allocate now and then.
    let each = (calls + DELIVERIES / 2) / DELIVERIES;
    assert!(each <= BUDGET, "a delivery makes {each} calls of the allocator, and its budget is {BUDGET}: {calls}");
}
