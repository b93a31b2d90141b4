//! A command that runs beside a test.
//! What does the command write, and how does it end?

use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

use super::{Lines, POLL, TEST_TIMEOUT};

/// Dropping it kills it.
pub struct Process {
    child: Child,
    /// The lines of stdout.
    pub lines: Lines,
}

impl Process {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("the command runs");
        let lines = Lines::default();
        lines.collect(child.stdout.take().unwrap());
        Self { child, lines }
    }

    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for the process to end.
    pub fn wait(&mut self) -> ExitStatus {
        wait(&mut self.child, &self.lines)
    }
}

pub fn signal(child: &Child, name: &str) {
    let done = Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status().unwrap();
    assert!(done.success());
}

/// Waits for a process to end, and shows its lines if it does not.
pub fn wait(child: &mut Child, lines: &Lines) -> ExitStatus {
    let deadline = Instant::now() + TEST_TIMEOUT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        assert!(Instant::now() < deadline, "still running:\n{}", lines.all().join("\n"));
        std::thread::sleep(POLL);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
