//! Every configuration that is adopted, kept: with the number that it is known by from then on.
//! Where is it recorded who changed what?

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use tracing::warn;

use crate::config::difference::Difference;
use crate::config::journal::{self, Overlay};
use crate::config::{self, Config, Problem};
use crate::history::{Entry, History, restore};
use crate::live::aside::Aside;
use crate::live::configuration::{Adopted, By};

/// Set by systemd for a unit with StateDirectory= (systemd.exec(5)); a list, where that names several.
const STATE: &str = "STATE_DIRECTORY";

/// Without a folder to keep them in, configurations are only counted.
pub struct Kept(Option<History>);

impl Kept {
    /// For a configuration that nobody wrote.
    pub fn nowhere() -> Self {
        Self(None)
    }

    /// That there is no history keeps nothing from starting.
    pub fn open(config: &Config) -> Self {
        let passed = std::env::var_os(STATE).and_then(|list| std::env::split_paths(&list).next());
        let passed = passed.filter(|path| path.is_absolute());
        let server = &config.server;
        Self(History::open(server.state.as_deref(), passed.as_deref(), server.history).unwrap_or_else(|fault| {
            let state = passed.as_deref().or(server.state.as_deref()).unwrap_or(Path::new("server.state"));
            warn!("adopted configurations are not kept: {}: {fault}", state.display());
            None
        }))
    }

    pub fn folder(&self) -> Option<PathBuf> {
        self.0.as_ref().map(|history| history.folder().to_owned())
    }

    /// The configuration that a process starts with; the one that it ended with is the same one.
    pub fn first(&self, config: &Config, warnings: &[Problem]) -> Adopted {
        let last = self.0.as_ref().and_then(History::last);
        let mut adopted = Adopted {
            number: self.number_after(0),
            at: Timestamp::now(),
            by: By::Start.to_string(),
            how: config.rollback.map_or_else(|| By::Start.to_string(), |number| format!("rollback to {number}")),
            written: Arc::clone(&config.written),
            warnings: config::one_line_each(warnings, &config.sources),
            ..Adopted::default()
        };
        match (&self.0, last) {
            (_, Some(last)) if last.digest == config.written.digest => adopted.number = last.number,
            (Some(history), last) => {
                let before = last.and_then(|last| history.written(&last).ok());
                adopted.difference =
                    before.map(|before| Difference::between(&before, &config.written)).unwrap_or_default();
                told(add(history, &adopted));
            }
            (None, _) => {}
        }
        adopted
    }

    pub(super) fn number_after(&self, number: u64) -> u64 {
        self.0.as_ref().map_or(number + 1, |history| history.next().max(number + 1))
    }

    /// On disk, when this is over.
    pub(super) async fn keep(&mut self, adopted: Adopted, most: usize, aside: &Aside) {
        let Some(history) = &mut self.0 else { return };
        history.keeps(most);
        let history = history.clone();
        if let Ok(added) = aside.run(move || add(&history, &adopted)).await {
            told(added);
        }
    }

    /// What a configuration that was kept would put in the place of what is on disk.
    pub(super) async fn overlay(&self, main: &Path, number: u64, aside: &Aside) -> Result<Overlay, String> {
        let history = self.0.clone().ok_or("no adopted configurations are kept: write server.state")?;
        let main = main.to_owned();
        let reading = aside.run(move || {
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
        contents: Default::default(),
    };
    history.add(entry, &adopted.written)
}

fn told(added: io::Result<u64>) {
    if let Err(fault) = added {
        warn!("this configuration is not kept: {fault}");
    }
}
