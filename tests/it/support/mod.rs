//! A real outgate, real receivers and real certificates for black-box tests.
//! Which clients, targets and files does a black-box test use?
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, reason = "each test file uses a part; a test may panic")]

pub mod audit;
pub mod clients;
pub mod configuration;
pub mod control;
pub mod frames;
pub mod http2;
pub mod law;
pub mod name_server;
pub mod namespace;
pub mod notify;
pub mod origins;
pub mod permit_model;
pub mod pki;
pub mod ports;
pub mod process;
pub mod receiver;
pub mod scene;
pub mod scrape;
pub mod signature;
pub mod store;
pub mod store_model;
pub mod tenants;
pub mod tunnel;
pub mod tunnel_scene;
pub mod wiretap;

use std::collections::HashMap;
use std::fmt::Display;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use configuration::Config;

/// The longest wait of a test. A longer wait is a failure.
pub const TEST_TIMEOUT: Duration = Duration::from_secs(20);

/// The interval at which a test polls a condition.
const POLL: Duration = Duration::from_millis(5);

/// The interval after a while: a condition may cost a process or a scrape.
const POLL_MAX: Duration = Duration::from_millis(50);

/// Waits until the condition holds. It panics after `TEST_TIMEOUT`.
pub fn eventually(description: &str, mut condition: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !condition() {
        let waited = begun.elapsed();
        assert!(waited < TEST_TIMEOUT, "not within {TEST_TIMEOUT:?}: {description}");
        std::thread::sleep((waited / 8).clamp(POLL, POLL_MAX));
    }
}

/// A folder that is removed on drop, unless it is linked to another one.
pub struct Folder(PathBuf, bool);

impl Folder {
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("outgate-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path, true)
    }
    /// The folder of `other`, which stays the owner.
    pub fn linked(other: &Folder) -> Self {
        Self(other.0.clone(), false)
    }
    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
    pub fn write(&self, name: &str, text: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, text).expect("a file for the test");
        path
    }
    /// Builds a library from C for `LD_PRELOAD`, with the compiler that builds the cryptography.
    pub fn build_shim(&self, source: &str) -> PathBuf {
        let (source, shim) = (self.write("shim.c", source), self.path("shim.so"));
        let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).args([&shim, &source]).arg("-ldl").status();
        assert!(built.expect("cc runs").success());
        shim
    }
    /// Returns the text of a configuration, with the path of the folder in place of `{dir}`.
    pub fn placed(&self, config: &(impl Display + ?Sized)) -> String {
        config.to_string().replace("{dir}", &self.0.display().to_string())
    }
    pub fn write_config(&self, name: &str, config: &(impl Display + ?Sized)) -> PathBuf {
        self.write(name, self.placed(config))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if self.1 {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

/// The lines that a process writes.
#[derive(Clone, Default)]
pub struct Lines(Arc<(Mutex<Vec<String>>, Condvar)>);

impl Lines {
    fn collect(&self, from: impl Read + Send + 'static) {
        let lines = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(from).lines().map_while(Result::ok) {
                lines.0.0.lock().unwrap().push(line);
                lines.0.1.notify_all();
            }
        });
    }
    pub fn all(&self) -> Vec<String> {
        self.0.0.lock().unwrap().clone()
    }
    /// Waits for `count` lines that contain all of these words, and returns their number. The log has its own thread, so a
    /// line may come after the response to its cause.
    pub fn wait_for_lines(&self, count: usize, words: &[&str]) -> usize {
        let has = |line: &&String| words.iter().all(|word| line.contains(word));
        let enough = |lines: &[String]| Some(lines.iter().filter(has).count()).filter(|found| *found >= count);
        self.wait_for(&format!("line {count} of {words:?}"), enough)
    }
    /// Waits until `found` returns a value.
    pub fn wait_for<T>(&self, description: &str, mut found: impl FnMut(&[String]) -> Option<T>) -> T {
        let deadline = Instant::now() + TEST_TIMEOUT;
        let mut lines = self.0.0.lock().unwrap();
        loop {
            if let Some(found) = found(&lines) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "no {description} in:\n{}", lines.join("\n"));
            lines = self.0.1.wait_timeout(lines, left).unwrap().0;
        }
    }
}

/// A running outgate. Dropping it kills it.
pub struct Outgate {
    child: Child,
    pub proxy: SocketAddr,
    pub admin: SocketAddr,
    pub log: Lines,
    records: Lines,
    pub folder: Folder,
}

impl Outgate {
    /// Runs with this configuration; `{dir}` in it stands for the folder.
    pub fn run(folder: Folder, config: &(impl Display + ?Sized)) -> Self {
        folder.write_config("config.toml", config);
        Self::run_in(folder)
    }

    /// Runs with the configuration in the folder.
    pub fn run_in(folder: Folder) -> Self {
        Self::run_as(Command::new(env!("CARGO_BIN_EXE_outgate")), folder)
    }

    /// Runs with this configuration, and no more than `files` file descriptors.
    pub fn run_limited(folder: Folder, config: &(impl Display + ?Sized), files: u32) -> Self {
        folder.write_config("config.toml", config);
        Self::run_as(limited(files), folder)
    }

    /// Runs with the configuration in the folder and these environment variables.
    pub fn run_in_with(folder: Folder, environment: &[(&str, &Path)]) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command.envs(environment.iter().copied());
        Self::run_as(command, folder)
    }

    /// Runs with the configuration in the folder, and passes this socket as systemd does.
    pub fn run_activated(folder: Folder, listener: &TcpListener) -> Self {
        let mut command = Command::new("sh");
        // The shell gets the socket as standard input and passes it on as descriptor 3, the first of systemd.
        let shell = "export LISTEN_PID=$$ LISTEN_FDS=1; exec \"$0\" \"$@\" 3<&0 0</dev/null";
        command.args(["-c", shell, env!("CARGO_BIN_EXE_outgate")]);
        command.args(["run", "--config"]).arg(folder.path("config.toml"));
        let socket = OwnedFd::from(listener.try_clone().expect("another descriptor"));
        Self::start_with_input(command, folder, socket.into())
    }

    fn run_as(mut command: Command, folder: Folder) -> Self {
        command.args(["run", "--config"]).arg(folder.path("config.toml"));
        Self::start(command, folder)
    }

    /// Runs this command, which starts a proxy.
    pub fn start(command: Command, folder: Folder) -> Self {
        Self::start_with_input(command, folder, Stdio::null())
    }

    fn start_with_input(command: Command, folder: Folder, input: Stdio) -> Self {
        Self::start_with(command, folder, input, Stdio::piped())
    }

    /// Runs a proxy whose records go to `output`, not to this test.
    pub fn start_with_output(command: Command, folder: Folder, output: Stdio) -> Self {
        Self::start_with(command, folder, Stdio::null(), output)
    }

    fn start_with(mut command: Command, folder: Folder, input: Stdio, output: Stdio) -> Self {
        let mut child = command
            .env("STATE_DIRECTORY", folder.path("state"))
            .stdin(input)
            .stdout(output)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let (log, records) = (Lines::default(), Lines::default());
        log.collect(child.stderr.take().unwrap());
        if let Some(output) = child.stdout.take() {
            records.collect(output);
        }
        let has_started = |line: &String| line.ends_with(" ready") || line.contains(" not ready: ");
        log.wait_for("ready", |lines| lines.iter().any(has_started).then_some(()));
        let address = |prefix: &str| {
            let lines = log.all();
            let found =
                lines.iter().find_map(|line| line.split_once(prefix)).map(|(_, rest)| rest.trim().parse().unwrap());
            found.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 1)))
        };
        let (proxy, admin) = (address("proxy listening on "), address("admin listening on "));
        Self { child, proxy, admin, log, records, folder }
    }

    /// Kills it and runs another in the same folder.
    pub fn restarted(mut self) -> Self {
        let _ = self.child.kill();
        let _ = self.child.wait();
        Self::run_in(std::mem::replace(&mut self.folder, Folder::new()))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: &str) {
        process::signal(&self.child, signal);
    }

    /// Reads the configuration from its file.
    pub fn config(&self) -> Config {
        Config::parse(&std::fs::read_to_string(self.folder.path("config.toml")).unwrap())
    }

    /// Replaces the configuration, and waits until outgate has adopted it.
    pub fn reconfigure(&self, config: &(impl Display + ?Sized)) {
        let outcome = self.reload_config(config);
        assert!(!outcome.contains("not adopted"), "{outcome}: {:#?}", self.log.all());
    }

    /// Replaces the configuration, and waits until outgate has rejected it.
    pub fn reconfigure_to_rejection(&self, config: &(impl Display + ?Sized)) {
        let outcome = self.reload_config(config);
        assert!(outcome.contains("not adopted"), "{outcome}: {:#?}", self.log.all());
    }

    /// Replaces the configuration the way an editor does.
    pub fn replace_config(&self, config: &(impl Display + ?Sized)) {
        let next = self.folder.write_config("config.toml.new", config);
        std::fs::rename(next, self.folder.path("config.toml")).unwrap();
    }

    /// Replaces the configuration, and returns the log line of the reload's outcome. A signal requests the reload: the
    /// outcome of a reload because of a file change may be that of an earlier change.
    fn reload_config(&self, config: &(impl Display + ?Sized)) -> String {
        self.replace_config(config);
        self.reload_by_signal()
    }

    /// Requests a reload, and returns the log line of its outcome. The reload begins after each change so far.
    pub fn reload_by_signal(&self) -> String {
        let is_outcome = |line: &&String| {
            let states = ["configuration reloaded", "configuration unchanged", "configuration not adopted"];
            line.contains("signal") && states.iter().any(|state| line.contains(state))
        };
        let before = self.log.all().iter().filter(is_outcome).count();
        self.signal("HUP");
        self.log.wait_for("outcome of the reload", |lines| lines.iter().filter(is_outcome).nth(before).cloned())
    }

    /// Waits for `count` records, and returns all records so far.
    pub fn records(&self, count: usize) -> Vec<serde_json::Value> {
        let lines = self.records.wait_for("record", |lines| (lines.len() >= count).then(|| lines.to_vec()));
        lines
            .iter()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("a record is JSON: {line}")))
            .collect()
    }

    /// Waits for the record of the delivery with this response. Records of deliveries over different connections are written
    /// in any order.
    pub fn record_of(&self, response: &Response) -> serde_json::Value {
        let id = response.field("outgate-request-id");
        assert!(!id.is_empty(), "{response:?}");
        let parse = |line: &String| -> serde_json::Value { serde_json::from_str(line).expect("a record is JSON") };
        self.records.wait_for(&format!("record of {response:?}"), |lines| {
            lines.iter().filter(|line| line.contains(id)).map(parse).find(|record| record["request_id"] == id)
        })
    }

    /// Returns the number of configurations that were adopted since the start.
    pub fn reloads(&self) -> usize {
        self.log.all().iter().filter(|line| line.contains("configuration reloaded")).count()
    }

    /// Makes this change, and waits until a configuration is adopted.
    pub fn after_reload(&self, change: impl FnOnce()) {
        let before = self.reloads();
        change();
        self.log.wait_for_lines(before + 1, &["configuration reloaded"]);
    }

    /// Returns whether `/metrics` has this line.
    pub fn has_metric(&self, line: &str) -> bool {
        self.admin("/metrics").text().lines().any(|found| found == line)
    }

    /// Waits until `/metrics` has this line.
    pub fn wait_for_metric(&self, line: &str) {
        eventually(line, || self.has_metric(line));
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> std::process::ExitStatus {
        process::wait(&mut self.child, &self.log)
    }

    pub fn connect(&self) -> Client {
        Client::connect(self.proxy)
    }

    /// Starts a delivery that is in flight until its client sends the `length` bytes of the body: 100 Continue shows that it
    /// has acquired its limits. `fields` are further fields of the request. `Err`: the response that refuses it.
    pub fn try_start_upload(&self, url: &str, fields: &str, length: usize) -> Result<Client, Response> {
        let mut client = self.connect();
        client.send(format!(
            "POST {url} HTTP/1.1\r\nHost: h\r\n{fields}Content-Length: {length}\r\nExpect: 100-continue\r\n\r\n"
        ));
        let response = client.next_response("POST");
        if response.status == 100 { Ok(client) } else { Err(response) }
    }

    /// Starts a delivery that is in flight until its client sends the `length` bytes of the body.
    pub fn start_upload(&self, url: &str, length: usize) -> Client {
        self.try_start_upload(url, "", length).unwrap_or_else(|refusal| panic!("{url}: {refusal:?}"))
    }

    pub fn admin(&self, path: &str) -> Response {
        let mut client = Client::connect(self.admin);
        client.send(format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"));
        client.response()
    }

    /// Sends one POST in absolute-form over a new connection.
    pub fn post(&self, url: &str, fields: &str, body: &str) -> Response {
        let mut client = self.connect();
        client.send(post(url, fields, body));
        client.response()
    }
}

/// The text of a POST; `fields` end in CRLF each.
pub fn post(url: &str, fields: &str, body: &str) -> String {
    format!("POST {url} HTTP/1.1\r\nHost: ignored.example\r\n{fields}Content-Length: {}\r\n\r\n{body}", body.len())
}

impl Drop for Outgate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that writes the bytes of a test and reads responses.
pub struct Client {
    stream: Box<dyn Wire>,
    /// The socket below the stream.
    socket: TcpStream,
    buffer: Vec<u8>,
}

/// TCP, or TLS over it.
trait Wire: Read + Write + Send {}
impl<T: Read + Write + Send> Wire for T {}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub reason: String,
    pub fields: HashMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    /// Parses a response whose body ends with the connection.
    pub fn parse(bytes: &[u8]) -> Self {
        let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let (line, lines) = head.split_once("\r\n").unwrap_or((&head, ""));
        let mut words = line.splitn(3, ' ').skip(1);
        let (status, reason) = (words.next().unwrap().parse().unwrap(), words.next().unwrap_or_default().to_owned());
        let field =
            |line: &str| line.split_once(": ").map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()));
        let fields = lines.split("\r\n").filter_map(field).collect();
        Self { status, reason, fields, body: bytes[end + 4..].to_vec() }
    }
    pub fn field(&self, name: &str) -> &str {
        self.fields.get(name).map_or("", String::as_str)
    }
    pub fn code(&self) -> &str {
        self.field("outgate-error")
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{self:?}"))
    }
}

impl Client {
    pub fn connect(to: SocketAddr) -> Self {
        let socket = TcpStream::connect(to).expect("a connection");
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        socket.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
        socket.set_nodelay(true).unwrap();
        Self { stream: Box::new(socket.try_clone().unwrap()), socket, buffer: Vec::new() }
    }
    /// Sets the longest wait, in place of `TEST_TIMEOUT`.
    pub fn set_patience(&self, patience: Duration) {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        self.socket.set_write_timeout(Some(patience)).unwrap();
    }
    pub fn send(&mut self, text: impl AsRef<[u8]>) {
        self.stream.write_all(text.as_ref()).expect("the other side reads");
    }
    /// Sends, and returns `false` if the peer has closed the connection.
    pub fn try_send(&mut self, text: impl AsRef<[u8]>) -> bool {
        self.stream.write_all(text.as_ref()).is_ok()
    }
    pub fn shutdown_write(&self) {
        let _ = self.socket.shutdown(std::net::Shutdown::Write);
    }
    /// Reads the next final response to a POST.
    pub fn response(&mut self) -> Response {
        self.response_to("POST")
    }
    pub fn response_to(&mut self, method: &str) -> Response {
        loop {
            let response = self.next_response(method);
            if response.status >= 200 {
                return response;
            }
        }
    }
    pub fn next_response(&mut self, method: &str) -> Response {
        self.try_next_response(method).expect("a whole response")
    }
    /// Reads the next final response to a POST. `None`: the peer has closed the connection before its end.
    pub fn try_response(&mut self) -> Option<Response> {
        loop {
            let response = self.try_next_response("POST")?;
            if response.status >= 200 {
                return Some(response);
            }
        }
    }
    fn try_next_response(&mut self, method: &str) -> Option<Response> {
        let end = self.fill_until(|buffer| buffer.windows(4).position(|four| four == b"\r\n\r\n"))? + 4;
        let head = String::from_utf8(self.buffer.drain(..end).collect()).unwrap();
        let mut lines = head.split("\r\n");
        let mut line = lines.next().unwrap().splitn(3, ' ').skip(1);
        let status = line.next().unwrap().parse().unwrap();
        let reason = line.next().unwrap_or_default().to_owned();
        let mut fields = HashMap::new();
        for (name, value) in lines.filter_map(|line| line.split_once(':')) {
            let entry: &mut String = fields.entry(name.to_ascii_lowercase()).or_default();
            if !entry.is_empty() {
                entry.push_str(", ");
            }
            entry.push_str(value.trim());
        }
        let mut response = Response { status, reason, fields, body: Vec::new() };
        let is_tunnel = method == "CONNECT" && status < 300;
        if method != "HEAD" && !is_tunnel && status >= 200 && status != 204 && status != 304 {
            response.body = self.body(&response)?;
        }
        Some(response)
    }
    fn body(&mut self, response: &Response) -> Option<Vec<u8>> {
        if response.field("transfer-encoding") == "chunked" {
            let mut body = Vec::new();
            loop {
                let end = self.fill_until(|buffer| buffer.windows(2).position(|two| two == b"\r\n"))?;
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                let size = usize::from_str_radix(std::str::from_utf8(&line[..end]).unwrap(), 16).unwrap();
                self.fill_until(|buffer| (buffer.len() >= size + 2).then_some(()))?;
                body.extend(self.buffer.drain(..size));
                self.buffer.drain(..2);
                if size == 0 {
                    return Some(body);
                }
            }
        }
        match response.fields.get("content-length") {
            Some(length) => {
                let length: usize = length.parse().unwrap();
                self.fill_until(|buffer| (buffer.len() >= length).then_some(()))?;
                Some(self.buffer.drain(..length).collect())
            }
            None => Some(self.rest()),
        }
    }
    fn fill_until<T>(&mut self, mut found: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
        loop {
            if let Some(found) = found(&self.buffer) {
                return Some(found);
            }
            let mut piece = [0; 16 * 1024];
            match read_or_end(&mut self.stream, &mut piece) {
                0 => return None,
                length => self.buffer.extend_from_slice(&piece[..length]),
            }
        }
    }
    /// Waits for at least one byte, and returns the bytes that are available.
    pub fn read_some(&mut self) -> Vec<u8> {
        self.fill_until(|buffer| (!buffer.is_empty()).then_some(())).expect("the other side speaks");
        std::mem::take(&mut self.buffer)
    }
    /// Returns whether the peer has sent something that this client has not read, or has closed the connection.
    pub fn has_input(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let has_input = self.socket.peek(&mut [0; 1]).is_ok();
        self.socket.set_nonblocking(false).unwrap();
        has_input || !self.buffer.is_empty()
    }
    /// Reads until the peer closes the connection.
    pub fn rest(&mut self) -> Vec<u8> {
        self.fill_until(|_| None::<()>);
        std::mem::take(&mut self.buffer)
    }
    /// Returns whether the peer closes the connection without another byte.
    pub fn is_closed(&mut self) -> bool {
        self.rest().is_empty()
    }
}

/// Reads once, and returns 0 when the peer has closed the connection with FIN or RST. It panics if the peer neither sends
/// nor closes: the end of the read timeout is not the end of the stream.
pub fn read_or_end(stream: &mut (impl Read + ?Sized), piece: &mut [u8]) -> usize {
    match stream.read(piece) {
        Ok(length) => length,
        // A socket with a timeout reports that the process was stopped and continued (signal(7)).
        Err(error) if error.kind() == ErrorKind::Interrupted => read_or_end(stream, piece),
        // TLS reports a FIN without its own end as UnexpectedEof.
        Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::UnexpectedEof) => 0,
        Err(error) => panic!("the peer neither sends nor closes: {error}"),
    }
}

/// Reads until the peer closes the connection with FIN or RST.
pub fn read_to_end(stream: &mut (impl Read + ?Sized)) -> Vec<u8> {
    let (mut bytes, mut piece) = (Vec::new(), vec![0; 16 * 1024]);
    loop {
        match read_or_end(stream, &mut piece) {
            0 => return bytes,
            length => bytes.extend_from_slice(&piece[..length]),
        }
    }
}

/// Returns a command that runs the binary with a hard limit of file descriptors.
pub fn limited(files: u32) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -n {files}; exec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_outgate")]);
    command
}

/// Returns whether the tests that need root, namespaces or other programs must run instead of being skipped.
pub fn required() -> bool {
    std::env::var_os("OUTGATE_TEST_ALL").is_some()
}
