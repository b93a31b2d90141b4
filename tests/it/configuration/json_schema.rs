//! `outgate config schema`, with taplo as an editor uses it.
//! Does the schema accept every valid configuration, and report a key or a value that outgate would not read?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::path::{Path, PathBuf};
use std::process::Command;

use super::example::with_all_settings;
use super::golden;
use crate::support::Folder;
use crate::support::clients::InstalledClients;
use crate::support::configuration::Replace;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene;
use outgate::config;

/// The schema that the command prints, and the linter.
struct Linter {
    clients: InstalledClients,
    folder: Folder,
}

impl Linter {
    fn open() -> Option<Self> {
        let clients = InstalledClients::open()?;
        let folder = Folder::new();
        let printed = Command::new(env!("CARGO_BIN_EXE_outgate")).args(["config", "schema"]).output().unwrap();
        assert!(printed.status.success(), "{printed:?}");
        folder.write("schema.json", printed.stdout);
        Some(Self { clients, folder })
    }

    /// Returns whether taplo accepts all files, and what it prints.
    fn accepts(&self, files: &[PathBuf]) -> (bool, String) {
        let schema = format!("file://{}", self.folder.path("schema.json").display());
        let output = self
            .clients
            .taplo()
            .args(["check", "--no-auto-config", "--colors", "never", "--schema", &schema])
            .args(files.iter().map(|file| std::path::absolute(file).unwrap()))
            .output()
            .unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn accepts_text(&self, text: &str) -> (bool, String) {
        self.accepts(&[self.folder.write("config.toml", text)])
    }
}

#[test]
fn json_schema_accepts_every_valid_configuration() {
    let Some(linter) = Linter::open() else { return };
    let is_valid = |path: &PathBuf| config::load_with_environment(path, &golden::environment).is_ok();
    let mut files: Vec<PathBuf> = golden::cases("toml").into_iter().filter(is_valid).collect();
    assert!(!files.is_empty());
    files.extend(["config.toml.example", "packaging/config.toml"].map(PathBuf::from));
    files.push(linter.folder.write("all.toml", with_all_settings()));
    let receiver = Receiver::tls(Pki::new().leaf(&["good.example"]), ok());
    files.push(linter.folder.write("scene.toml", scene::config(&receiver, &receiver, "").to_string()));
    let readme = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let blocks = readme.split("```toml\n").skip(1).map(|block| block.split("```").next().unwrap());
    files.extend(blocks.enumerate().map(|(number, text)| linter.folder.write(&format!("readme-{number}.toml"), text)));
    let (accepted, printed) = linter.accepts(&files);
    assert!(accepted, "{printed}");
}

#[test]
fn json_schema_reports_misspelt_keys_and_values_that_outgate_does_not_read() {
    let Some(linter) = Linter::open() else { return };
    let text = with_all_settings();
    for (right, wrong, reported) in [
        ("\n[timeouts]\n", "\n[timeout]\n", "timeout"),
        ("\nmax_deliveries = 10000\n", "\nmax_delivery = 10000\n", "max_delivery"),
        ("{ cidr = \"203.0.113.0/24\", report_only", "{ cidr = \"203.0.113.0/24\", dry_run", "dry_run"),
        ("\nbody_max = \"1 MiB\"\n", "\nbody_max = 1048576\n", "1048576"),
        ("\nconnect = \"tunnel\"\n", "\nconnect = \"pass\"\n", "pass"),
        ("\nports = [8443]\n", "\nports = [84430]\n", "84430"),
        ("\nrole = \"operator\"\n", "\n", "role"),
        ("\nfailover = true\n", "\nfailover = \"yes\"\n", "yes"),
    ] {
        let (accepted, printed) = linter.accepts_text(&text.replace_one(right, wrong));
        assert!(!accepted && printed.contains(reported), "{wrong}: {printed}");
    }
}
