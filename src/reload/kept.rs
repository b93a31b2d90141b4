//! Every configuration that is adopted, kept: with the number that it is known by from then on.
//! Where is it recorded who changed what?

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use tokio::time::timeout;
use tracing::warn;

use crate::config::difference::Difference;
use crate::config::journal::{self, Overlay};
use crate::config::{self, Config, Problem};
use crate::history::{Entry, History, restore};
use crate::live::Live;
use crate::live::aside::Aside;
use crate::live::configuration::{Adopted, By};

/// Set by systemd for a unit with StateDirectory= (systemd.exec(5)); a list, where that names several.
const STATE: &str = "STATE_DIRECTORY";

/// As long as an answer waits for the disk: so whoever reads the history then finds what was adopted.
const PATIENCE: Duration = Duration::from_secs(1);
/// On a disk that hangs, so many are waited for in memory.
const WAITING_MAX: usize = 10;

/// Without a folder to keep them in, configurations are only counted.
pub struct Kept {
    history: Option<History>,
    live: Arc<Live>,
    /// The one that the process starts with, until it listens.
    first: Option<Adopted>,
    /// A thread of its own: a disk that hangs holds up nothing else.
    writer: Aside,
    waiting: Arc<AtomicUsize>,
}

impl Kept {
    /// For a configuration that nobody wrote.
    pub fn nowhere(live: &Arc<Live>) -> Self {
        let (writer, waiting) = (Aside::default(), Arc::default());
        Self { history: None, live: Arc::clone(live), first: None, writer, waiting }
    }

    /// That there is no history keeps nothing from starting.
    pub fn open(config: &Config, live: &Arc<Live>) -> Self {
        let passed = std::env::var_os(STATE).and_then(|list| std::env::split_paths(&list).next());
        let passed = passed.filter(|path| path.is_absolute());
        let server = &config.server;
        let history = History::open(server.state.as_deref(), passed.as_deref(), server.history);
        let history = history.unwrap_or_else(|fault| {
            let state = passed.as_deref().or(server.state.as_deref()).unwrap_or(Path::new("server.state"));
            told(live, Err(io::Error::new(fault.kind(), format!("{}: {fault}", state.display()))));
            None
        });
        if let Some(history) = &history {
            live.configuration.keeps_history(history.folder().to_owned());
        }
        Self { history, ..Self::nowhere(live) }
    }

    /// The configuration that a process starts with; the one that it ended with is the same one.
    pub fn first(&mut self, config: &Config, warnings: &[Problem]) -> Adopted {
        let last = self.history.as_ref().and_then(History::last);
        let mut adopted = Adopted {
            number: self.number_after(0),
            at: Timestamp::now(),
            by: By::Start.to_string(),
            how: config.rollback.map_or_else(|| By::Start.to_string(), |number| format!("rollback to {number}")),
            written: Arc::clone(&config.written),
            warnings: config::one_line_each(warnings, &config.sources),
            ..Adopted::default()
        };
        match (&self.history, last) {
            (_, Some(last)) if last.digest == config.written.digest => adopted.number = last.number,
            (Some(history), last) => {
                let before = last.and_then(|last| history.written(&last).ok());
                adopted.difference =
                    before.map(|before| Difference::between(&before, &config.written)).unwrap_or_default();
                self.first = Some(adopted.clone());
            }
            (None, _) => {}
        }
        adopted
    }

    /// Once the process listens: nothing is kept of a start that failed.
    pub(super) async fn keep_first(&mut self) {
        if let Some(first) = self.first.take() {
            self.write(first).await;
        }
    }

    pub(super) fn number_after(&self, number: u64) -> u64 {
        self.history.as_ref().map_or(number + 1, |history| history.next().max(number + 1))
    }

    pub(super) async fn keep(&mut self, adopted: Adopted, most: usize) {
        if let Some(history) = &mut self.history {
            history.keeps(most);
        }
        self.write(adopted).await;
    }

    /// On disk, when this is over, unless the disk takes its time.
    async fn write(&self, adopted: Adopted) {
        let Some(history) = &self.history else { return };
        if self.waiting.fetch_add(1, Ordering::Relaxed) >= WAITING_MAX {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
            return told(&self.live, Err(io::Error::other("the disk has not taken those before")));
        }
        let (history, live, waiting) = (history.clone(), Arc::clone(&self.live), Arc::clone(&self.waiting));
        let writing = self.writer.run(move || {
            told(&live, add(&history, &adopted));
            waiting.fetch_sub(1, Ordering::Relaxed);
        });
        let _ = timeout(PATIENCE, writing).await;
    }

    /// What a configuration that was kept would put in the place of what is on disk.
    pub(super) async fn overlay(&self, main: &Path, number: u64) -> Result<Overlay, String> {
        let history = self.history.clone().ok_or("no adopted configurations are kept: write server.state")?;
        let main = main.to_owned();
        let reading = self.live.aside.run(move || {
            let entry = history.entry(number).map_err(|fault| unkept(number, &fault))?;
            if entry.files.first() != Some(&journal::absolute(&main)) {
                return Err(format!("configuration {number} is of another file than {}", main.display()));
            }
            let written = history.written(&entry).map_err(|fault| unkept(number, &fault))?;
            Ok(restore::overlay(&main, &entry, &written))
        });
        reading.await.unwrap_or_else(|_| Err(format!("configuration {number} could not be read")))
    }
}

fn unkept(number: u64, fault: &io::Error) -> String {
    format!("configuration {number} is not among those that are kept: {fault}")
}

fn add(history: &History, adopted: &Adopted) -> io::Result<u64> {
    let entry = Entry {
        number: adopted.number,
        at: adopted.at,
        by: adopted.by.clone(),
        how: adopted.how.clone(),
        difference: adopted.difference.clone(),
        digest: adopted.written.digest.clone(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        files: Vec::new(),
        modes: Vec::new(),
        texts: String::new(),
        contents: Default::default(),
    };
    history.add(entry, &adopted.written)
}

fn told(live: &Live, added: io::Result<u64>) {
    let why = added.err().map(|fault| fault.to_string());
    if let Some(why) = &why {
        warn!("this configuration is not kept: {why}");
    }
    live.unkept(why);
}
