//! Servers that fleets share: Debian's redis-server on loopback, alone, with sentinels, and as a cluster.
//! Which store do the instances of a test have in common?

use std::process::Command;

use socket2::{Domain, Socket, Type};

use super::process::Process;
use super::wiretap::Wiretap;
use super::{Folder, eventually, required};

/// The address of the servers, unless a test names another one of its host.
pub const LOOPBACK: &str = "127.0.0.1";

/// A redis-server that keeps nothing on a disk. Dropping it kills it.
pub struct StoreServer {
    process: Process,
    pub port: u16,
    arguments: Vec<String>,
    /// Arguments of `redis-cli` that a command of the test needs.
    cli: Vec<String>,
    folder: Folder,
    _held: Socket,
}

/// Reserves a port for a program that binds with SO_REUSEADDR, as redis-server does.
fn reserve() -> (Socket, u16) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let port = socket.local_addr().unwrap().as_socket().unwrap().port();
    (socket, port)
}

/// Returns whether redis-server and redis-cli can run. Without `OUTGATE_TEST_ALL=1`, a test without them is skipped.
pub fn is_installed() -> bool {
    let is_installed =
        ["redis-server", "redis-cli"].iter().all(|program| Command::new(program).arg("--version").output().is_ok());
    assert!(is_installed || !required(), "missing: redis-server");
    if !is_installed {
        eprintln!("skipped: redis-server is missing");
    }
    is_installed
}

impl StoreServer {
    pub fn start() -> Self {
        Self::start_with(&[], &[])
    }

    /// Starts a server with more settings; `{dir}` in them stands for `folder`'s path, and `{port}` for the port.
    pub fn start_with(settings: &[&str], cli: &[&str]) -> Self {
        Self::start_in(Folder::new(), settings, cli)
    }

    pub fn start_in(folder: Folder, settings: &[&str], cli: &[&str]) -> Self {
        let (held, port) = reserve();
        let (port_text, dir) = (port.to_string(), folder.path("").display().to_string());
        let is_tls = settings.contains(&"--tls-port");
        let first =
            ["--port", if is_tls { "0" } else { &port_text }, "--bind", "127.0.0.1", "--save", "", "--dir", &dir];
        let fill = |text: &&str| text.replace("{dir}", dir.trim_end_matches('/')).replace("{port}", &port_text);
        let arguments: Vec<String> = first.iter().chain(settings).map(fill).collect();
        let process = Process::start(Command::new("redis-server").args(&arguments));
        let cli = cli.iter().map(fill).collect();
        let server = Self { process, port, arguments, cli, folder, _held: held };
        server.wait_until_ready();
        server
    }

    fn wait_until_ready(&self) {
        eventually("redis-server answers", || self.cli(&["ping"]).contains("PONG"));
    }

    /// Runs a command on the server, and returns what redis-cli prints.
    pub fn cli(&self, command: &[&str]) -> String {
        let port = self.port.to_string();
        let mut cli = Command::new("redis-cli");
        cli.args(["-h", "127.0.0.1", "-p", &port]).args(&self.cli).args(command);
        String::from_utf8_lossy(&cli.output().expect("redis-cli runs").stdout).into_owned()
    }

    /// Relays connections to the server, and records their bytes.
    pub fn wiretap(&self) -> Wiretap {
        Wiretap::before(([127, 0, 0, 1], self.port).into())
    }

    pub fn signal(&self, name: &str) {
        self.process.signal(name);
    }

    /// Kills the server.
    pub fn kill(&mut self) {
        self.process.signal("KILL");
        self.process.wait();
    }

    /// Starts the killed server again, without its data.
    pub fn restart_empty(&mut self) {
        self.process = Process::start(Command::new("redis-server").args(&self.arguments));
        self.wait_until_ready();
    }

    pub fn path(&self, name: &str) -> String {
        self.folder.path(name).display().to_string()
    }
}

/// Starts a sentinel that watches the master at this address of the host, which it calls `outgate`.
pub fn sentinel_of(address: &str, master: u16) -> StoreServer {
    let folder = Folder::new();
    let (held, port) = reserve();
    let bind = if address == LOOPBACK { LOOPBACK.to_owned() } else { format!("{LOOPBACK} {address}") };
    let text = format!(
        "port {port}\nbind {bind}\nprotected-mode no\ndir {}\nsentinel monitor outgate {address} {master} 1\n\
         sentinel down-after-milliseconds outgate 300\nsentinel failover-timeout outgate 2000\n",
        folder.path("").display()
    );
    let file = folder.write("sentinel.conf", text).display().to_string();
    let arguments = vec![file, "--sentinel".to_owned()];
    let process = Process::start(Command::new("redis-server").args(&arguments));
    let sentinel = StoreServer { process, port, arguments, cli: Vec::new(), folder, _held: held };
    sentinel.wait_until_ready();
    sentinel
}

/// Starts a master and its replica, and three sentinels that know them, at this address of the host.
pub fn with_sentinels(address: &str) -> ([StoreServer; 2], Vec<StoreServer>) {
    let nodes = replicated(address);
    let sentinels: Vec<_> = (0..3).map(|_| sentinel_of(address, nodes[0].port)).collect();
    let knows_all = |sentinel: &StoreServer| {
        let known = sentinel.cli(&["sentinel", "master", "outgate"]).replace('\n', " ");
        known.contains("num-slaves 1 ") && known.contains("num-other-sentinels 2 ")
    };
    eventually("the sentinels know each other and the replica", || sentinels.iter().all(knows_all));
    (nodes, sentinels)
}

/// The form of a store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StoreForm {
    Single,
    /// A master with a replica, and three sentinels.
    Sentinels,
    /// Three masters with a replica each.
    Cluster,
}

/// The servers of a store, whichever form it has.
pub struct Store {
    pub nodes: Vec<StoreServer>,
    _sentinels: Vec<StoreServer>,
    /// The keys of `[fleet]` that lead to it.
    pub settings: String,
}

/// The password of the documented user.
pub const PASSWORD: &str = "hunter2";

impl Store {
    pub fn start(form: StoreForm) -> Self {
        let list = |servers: &[StoreServer]| {
            servers.iter().map(|server| format!("127.0.0.1:{}", server.port)).collect::<Vec<_>>().join(",")
        };
        let (nodes, sentinels) = match form {
            StoreForm::Single => (vec![StoreServer::start()], Vec::new()),
            StoreForm::Cluster => (cluster(), Vec::new()),
            StoreForm::Sentinels => {
                let (nodes, sentinels) = with_sentinels(LOOPBACK);
                (nodes.into(), sentinels)
            }
        };
        let url = match form {
            StoreForm::Single => format!("redis://{}", list(&nodes)),
            StoreForm::Sentinels => format!("redis-sentinel://{}/outgate", list(&sentinels)),
            StoreForm::Cluster => format!("redis-cluster://{}", list(&nodes)),
        };
        Self { nodes, _sentinels: sentinels, settings: format!("store = \"{url}\"\n") }
    }

    /// Gives each server the user of docs/fleet.md. An instance needs the file `password` with [`PASSWORD`].
    pub fn with_documented_user(mut self) -> Self {
        self.nodes.iter().for_each(permit_documented_user);
        self.settings += "user = \"outgate\"\npassword = \"file:{dir}/password\"\n";
        self
    }
}

/// Creates the user as docs/fleet.md tells the operator to.
pub fn permit_documented_user(server: &StoreServer) {
    let documented = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/fleet.md"));
    let acl = documented.lines().find(|line| line.starts_with("ACL SETUSER")).expect("docs/fleet.md has the ACL");
    let acl = acl.replace("PASSWORD", PASSWORD);
    assert_eq!(server.cli(&acl.split(' ').collect::<Vec<_>>()).trim(), "OK");
}

/// Starts a master, and a replica that follows it.
pub fn replicated(address: &str) -> [StoreServer; 2] {
    let more: &[&str] =
        if address == LOOPBACK { &[] } else { &["--bind", LOOPBACK, address, "--protected-mode", "no"] };
    let master = StoreServer::start_with(more, &[]);
    let port = master.port.to_string();
    let replica = StoreServer::start_with(&[more, &["--replicaof", address, &port]].concat(), &[]);
    eventually("the replica follows", || replica.cli(&["info", "replication"]).contains("master_link_status:up"));
    [master, replica]
}

fn cluster_node() -> StoreServer {
    let (bus, bus_port) = reserve();
    let bus_port = bus_port.to_string();
    let settings = ["--cluster-enabled", "yes", "--cluster-port", &bus_port, "--cluster-node-timeout", "1000"];
    let server = StoreServer::start_with(&settings, &[]);
    drop(bus);
    server
}

fn has_all_slots(node: &StoreServer) -> bool {
    node.cli(&["cluster", "info"]).contains("cluster_state:ok")
}

/// A cluster of one master, and the relay before it, whose address is that of the node for its clients.
pub fn cluster_behind_relay() -> (StoreServer, Wiretap) {
    let node = cluster_node();
    let tap = node.wiretap();
    for (setting, value) in
        [("cluster-announce-ip", LOOPBACK), ("cluster-announce-port", &tap.address.port().to_string())]
    {
        assert_eq!(node.cli(&["config", "set", setting, value]).trim(), "OK");
    }
    assert_eq!(node.cli(&["cluster", "addslotsrange", "0", "16383"]).trim(), "OK");
    eventually("the node has all slots", || has_all_slots(&node));
    (node, tap)
}

/// A cluster of three masters with a replica each.
pub fn cluster() -> Vec<StoreServer> {
    let nodes: Vec<_> = (0..6).map(|_| cluster_node()).collect();
    let mut create = Command::new("redis-cli");
    create.args(["--cluster", "create"]).args(nodes.iter().map(|node| format!("127.0.0.1:{}", node.port)));
    let created = create.args(["--cluster-replicas", "1", "--cluster-yes"]).output().unwrap();
    assert!(created.status.success(), "{}", String::from_utf8_lossy(&created.stdout));
    eventually("the cluster has all slots", || nodes.iter().all(has_all_slots));
    nodes
}
