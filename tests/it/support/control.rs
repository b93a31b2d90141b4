//! A scene whose outgate is asked over its admin socket, and the commands that ask it.
//! What do the commands of an operator say?

use std::process::{Command, Output};

use serde_json::Value;

use super::scene::{Scene, config};

/// With a socket to ask, and files that are read only when somebody asks.
pub fn asked(text: &str) -> String {
    text.replace(
        "[admin]\nlisten = [\"127.0.0.1:0\"]",
        "[admin]\nlisten = [\"127.0.0.1:0\", \"unix:{dir}/admin.sock\"]",
    )
    .replace("[server]\n", "[server]\nwatch = false\n")
}

/// The scene's configuration, asked.
pub fn text(scene: &Scene, more: &str) -> String {
    asked(&config(&scene.good, &scene.plain, more))
}

/// With the folder's path, as the scene spells it.
pub fn placed(scene: &Scene, text: &str) -> String {
    text.replace("{dir}", scene.outgate.folder.path("x").parent().unwrap().to_str().unwrap())
}

pub fn write(scene: &Scene, text: &str) {
    scene.outgate.folder.write("config.toml", placed(scene, text));
}

/// Runs a command, about the scene's outgate unless it names another.
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

/// Writes a configuration and has it taken up.
pub fn reload(scene: &Scene, text: &str) -> String {
    write(scene, text);
    let (code, out, err) = said(&run(scene, &["reload"]));
    assert_eq!(code, 0, "{err}");
    out
}

/// Exit code, stdout and stderr.
pub fn said(output: &Output) -> (i32, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

pub fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{:?}", said(output)))
}

pub fn status(scene: &Scene) -> Value {
    json(&run(scene, &["status", "--json"]))
}
