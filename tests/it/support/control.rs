//! A scene with an admin socket, and the commands that use the socket.
//! What do the commands of an operator print?

use std::fmt::Display;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Output};

use serde_json::Value;

use super::configuration::Config;
use super::scene::{Scene, config};
use super::{Outgate, Response, TEST_TIMEOUT};

/// Adds an admin socket, and turns the watch of files off.
pub fn with_admin_socket(config: &Config) -> Config {
    config.push("admin.listen", "unix:{dir}/admin.sock").add("server.watch", false)
}

/// The scene's configuration with the admin socket.
pub fn text(scene: &Scene, more: &str) -> Config {
    with_admin_socket(&config(&scene.good, &scene.plain, more))
}

pub fn write(scene: &Scene, config: &(impl Display + ?Sized)) {
    scene.outgate.folder.write_config("config.toml", config);
}

/// Runs a command with the scene's configuration, unless the arguments name another.
pub fn run(scene: &Scene, words: &[&str]) -> Output {
    let config = scene.outgate.folder.path("config.toml");
    let named = words.contains(&"--config") || words.contains(&"--admin");
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(words);
    if !named {
        command.arg("--config").arg(config);
    }
    command.output().unwrap()
}

/// Writes a configuration, reloads it, and returns stdout.
pub fn reload(scene: &Scene, config: &(impl Display + ?Sized)) -> String {
    write(scene, config);
    let (code, out, err) = exit_code_and_output(&run(scene, &["reload"]));
    assert_eq!(code, 0, "{err}");
    out
}

/// Returns the exit code, stdout and stderr.
pub fn exit_code_and_output(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{:?}", exit_code_and_output(output)))
}

/// Sends a request to the admin socket, as a user of this host.
pub fn call(outgate: &Outgate, method: &str, path: &str, body: &str) -> Response {
    let mut stream = UnixStream::connect(outgate.folder.path("admin.sock")).unwrap();
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    let length = body.len();
    let head =
        format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n");
    write!(stream, "{head}Content-Type: application/json\r\n\r\n{body}").unwrap();
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    Response::parse(&bytes)
}

/// Sends GET to the admin socket.
pub fn get(outgate: &Outgate, path: &str) -> Response {
    call(outgate, "GET", path, "")
}

pub fn status(scene: &Scene) -> Value {
    json(&run(scene, &["status", "--json"]))
}
