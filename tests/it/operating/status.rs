//! `outgate status` on a terminal, as a live view, and for scripts.
//! Does the view fit the terminal, show what changes, and leave the terminal as it was?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use serde_json::Value;
use support::TEST_TIMEOUT;
use support::control::with_admin_socket;
use support::process::signal;
use support::scene::{Scene, scene_of};

const COLUMNS: u16 = 60;

/// Runs the command on a terminal of 60 columns, and collects what it writes.
fn on_terminal(scene: &Scene, words: &[&str], no_colour: bool) -> (Child, File) {
    let main = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&main).unwrap();
    unlockpt(&main).unwrap();
    let name = ptsname(&main, Vec::new()).unwrap().into_string().unwrap();
    let terminal = OpenOptions::new().read(true).write(true).open(name).unwrap();
    tcsetwinsize(&main, Winsize { ws_row: 50, ws_col: COLUMNS, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    command.args(words).arg("--config").arg(scene.outgate.folder.path("config.toml"));
    if no_colour {
        command.env("NO_COLOR", "1");
    } else {
        command.env_remove("NO_COLOR");
    }
    (command.stdin(Stdio::null()).stdout(terminal).spawn().unwrap(), File::from(main))
}

fn scene() -> Scene {
    scene_of(&with_admin_socket)
}

/// Reads until the program has ended, which Linux reports as an error of the terminal.
fn rest(terminal: &mut File) -> String {
    let mut bytes = Vec::new();
    let _ = terminal.read_to_end(&mut bytes);
    String::from_utf8(bytes).unwrap()
}

#[test]
fn status_fits_the_terminal_and_obeys_no_color() {
    let scene = scene();
    for no_colour in [false, true] {
        let (mut child, mut terminal) = on_terminal(&scene, &["status"], no_colour);
        assert!(child.wait().unwrap().success());
        let shown = rest(&mut terminal);
        assert_eq!(shown.contains("\u{1b}[32mready"), !no_colour, "{shown}");
        assert_eq!(shown.contains('\u{1b}'), !no_colour, "{shown}");
        for line in shown.lines().filter(|_| no_colour) {
            assert!(line.trim_end().chars().count() <= usize::from(COLUMNS), "{line}");
        }
    }
}

#[test]
fn status_watch_redraws_in_place_and_restores_the_terminal() {
    let scene = scene();
    let (mut child, mut terminal) = on_terminal(&scene, &["status", "--watch=50ms"], true);
    let mut seen = String::new();
    let mut piece = [0; 4096];
    let deadline = Instant::now() + TEST_TIMEOUT;
    while !seen.contains("per second") {
        assert!(Instant::now() < deadline, "no rates: {seen}");
        let length = terminal.read(&mut piece).unwrap();
        seen.push_str(&String::from_utf8_lossy(&piece[..length]));
    }
    assert!(seen.starts_with("\u{1b}[?1049h\u{1b}[?25l"), "{seen}");
    assert!(seen.matches("\u{1b}[H").count() >= 2, "a second sample has rates: {seen}");
    signal(&child, "INT");
    let end = rest(&mut terminal);
    assert!(child.wait().unwrap().success());
    assert!(end.ends_with("\u{1b}[?25h\u{1b}[?1049l"), "{end}");
}

#[test]
fn status_watch_without_a_terminal_writes_a_line_for_each_sample_until_the_reader_goes() {
    let scene = scene();
    for (more, is_json) in [(&[][..], false), (&["--json"], true)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        command
            .args(["status", "--watch=20ms"])
            .args(more)
            .arg("--config")
            .arg(scene.outgate.folder.path("config.toml"));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().take(2);
        for line in lines.map(Result::unwrap) {
            assert!(!line.contains('\u{1b}'), "{line}");
            match is_json {
                true => assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["ready"], true),
                false => assert!(line.contains(" ready, configuration 1, 0 in flight"), "{line}"),
            }
        }
        // The reader has closed the pipe.
        assert!(child.wait().unwrap().success());
    }
}
