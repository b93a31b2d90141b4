//! Common web servers, and every request line that they read.
//! How many requests do their parsers find in the bytes that outgate forwards?

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use socket2::Socket;

use super::{Client, Folder, eventually, required};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/origins");
const LINES: &str = "lines.log";

pub struct Origin {
    pub name: &'static str,
    pub port: u16,
    child: Child,
    folder: Folder,
    /// Reserves the port of nginx.
    held: Option<Socket>,
}

/// Starts nginx, node:http and http.server. Returns `None` if one is missing and not required.
pub fn all() -> Option<[Origin; 3]> {
    for (program, argument) in [("nginx", "-v"), ("node", "--version"), ("python3", "--version")] {
        if Command::new(program).arg(argument).output().is_err() {
            assert!(!required(), "missing: {program}");
            eprintln!("skipped: {program} is missing");
            return None;
        }
    }
    Some([nginx(), printing("node", "node", "origin.mjs"), printing("python", "python3", "origin.py")])
}

fn printing(name: &'static str, program: &str, file: &str) -> Origin {
    let folder = Folder::new();
    let child = Command::new(program)
        .arg(format!("{PROGRAMS}/{file}"))
        .stdin(Stdio::piped())
        .stdout(File::create(folder.path(LINES)).unwrap())
        .spawn()
        .expect("the origin runs");
    let mut origin = Origin { name, port: 0, child, folder, held: None };
    eventually("the port", || {
        let port = origin.read().split_once('\n').map(|(line, _)| line.parse().unwrap());
        origin.port = port.unwrap_or_default();
        port.is_some()
    });
    origin
}

fn nginx() -> Origin {
    // nginx needs a port in its configuration. A socket that is bound and does not listen reserves a free one.
    let (held, address) = super::ports::reserved();
    let port = address.port();
    let folder = Folder::new();
    let dir = folder.path("").display().to_string();
    let text = std::fs::read_to_string(format!("{PROGRAMS}/nginx.conf")).unwrap();
    let text = text.replace("{dir}", dir.trim_end_matches('/')).replace("{port}", &port.to_string());
    let file = folder.write("nginx.conf", text);
    let child = Command::new("nginx").arg("-c").arg(file).args(["-e", "stderr"]).spawn().expect("nginx runs");
    let origin = Origin { name: "nginx", port, child, folder, held: Some(held) };
    eventually("nginx listens", || TcpStream::connect(origin.address()).is_ok());
    origin
}

impl Origin {
    fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    fn read(&self) -> String {
        std::fs::read_to_string(self.folder.path(LINES)).unwrap()
    }

    /// Returns every request line that the origin read. The clients must have closed their connections before, so that the
    /// origin reads each to its end.
    pub fn lines(mut self) -> Vec<String> {
        if self.held.is_some() {
            eventually("nginx's connections end", || {
                let mut client = Client::connect(self.address());
                client.send("GET /status HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
                // The only open connection is that of this request.
                client.response().text().starts_with("Active connections: 1 \n")
            });
            return self.read().lines().map(str::to_owned).collect();
        }
        drop(self.child.stdin.take());
        eventually("the origin ends", || self.child.try_wait().unwrap().is_some());
        self.read().lines().skip(1).map(str::to_owned).collect()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
