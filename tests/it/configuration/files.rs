//! The files of a configuration: secrets, certificates and includes.
//! Is every file read, watched and compared?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::support::configuration::Replace;
use crate::support::eventually;
use jiff::Timestamp;
use outgate::config::{self, Config, KeyFolder, LoadError, Loaded, Severity};
use outgate::names::TenantName;
use outgate::policy;

/// A folder for one test, which is removed on drop.
struct Folder(PathBuf);

impl Folder {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("outgate-config-{test}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, mode: u32, content: &[u8]) -> &Self {
        let path = self.0.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        self
    }

    fn load(&self) -> Result<Loaded, LoadError> {
        let folder = OsString::from(self.0.join("credentials"));
        config::load_with_environment(&self.0.join("config.toml"), &|name| {
            (name == "CREDENTIALS_DIRECTORY").then(|| folder.clone())
        })
    }

    fn config(&self) -> Config {
        self.load().unwrap_or_else(|rejected| panic!("{:?}", rejected.problems)).config
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn signer(secret: &str) -> Vec<u8> {
    format!("[signers.a]\nscheme = \"standard-webhooks\"\nkeys = [{{ id = \"1\", secret = \"{secret}\" }}]\n")
        .into_bytes()
}

fn secret(config: &Config) -> &[u8] {
    config.signers.values().next().unwrap().keys[0].secret.expose()
}

#[test]
fn secrets_come_from_files_and_credentials_without_the_space_around_them() {
    let folder = Folder::new("secrets");
    folder.write("keys/a", 0o600, b" whsec_AAAA\n\n").write("credentials/b", 0o444, b"whsec_BBBB");
    folder.write("config.toml", 0o644, &signer("file:keys/a"));
    let loaded = folder.load().unwrap();
    assert_eq!((secret(&loaded.config), loaded.warnings.len()), (b"whsec_AAAA".as_slice(), 0));
    assert_eq!(loaded.config.files, [folder.0.join("config.toml"), folder.0.join("keys/a")]);
    assert!(!format!("{:?}", loaded.config).contains("whsec_AAAA"));

    folder.write("config.toml", 0o644, &signer("credential:b"));
    let loaded = folder.load().unwrap();
    assert_eq!((secret(&loaded.config), loaded.warnings.len()), (b"whsec_BBBB".as_slice(), 0));
}

#[test]
fn secret_file_that_other_users_can_read_is_a_warning() {
    let folder = Folder::new("mode");
    folder.write("a", 0o644, b"whsec_AAAA").write("config.toml", 0o644, &signer("file:a"));
    let warnings = folder.load().unwrap().warnings;
    assert_eq!((warnings.len(), warnings[0].severity), (1, Severity::Warning));
    assert_eq!(warnings[0].help, Some(format!("run `chmod o-rwx {}`", folder.0.join("a").display())));
}

#[test]
fn secret_that_cannot_be_read_or_decoded_is_a_problem() {
    let folder = Folder::new("no-secret");
    folder.write("empty", 0o600, b" \n").write("large", 0o600, &[b'x'; 65_537]).write("credentials/b", 0o600, b"b");
    for (reference, label) in [
        ("file:empty", ""),
        ("file:large", "is larger than 64 KiB"),
        ("file:absent", "does not exist"),
        ("file:credentials", "is a directory"),
        ("credential:absent", "no credential absent was passed"),
    ] {
        folder.write("config.toml", 0o644, &signer(reference));
        let problems = folder.load().unwrap_err().problems;
        assert!(problems.len() == 1 && problems[0].label.ends_with(label), "{reference}: {problems:?}");
    }
}

#[test]
fn rejected_configuration_lists_the_files_to_watch() {
    let folder = Folder::new("watch");
    folder.write("config.toml", 0o644, &signer("file:absent"));
    assert_eq!(folder.load().unwrap_err().files, [folder.0.join("absent"), folder.0.join("config.toml")]);
}

#[test]
fn includes_are_merged_in_order_each_once() {
    let folder = Folder::new("includes");
    let route = |name: &str| format!("[[routes]]\nname = \"{name}\"\nhosts = [\"{name}.example\"]\n").into_bytes();
    let main = b"include = [\"conf.d/*.toml\", \"conf.d/20.toml\", \"*.toml\"]\n";
    folder.write("config.toml", 0o644, main).write("conf.d/20.toml", 0o644, &route("b"));
    folder.write("conf.d/10.toml", 0o644, &route("a")).write("conf.d/30.bak", 0o644, b"no TOML");
    symlink("20.toml", folder.0.join("conf.d/.20.toml.swp")).unwrap();
    let config = folder.config();
    let names: Vec<&str> = config.routes.iter().map(|route| route.name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    // The directories are included, because a new file in one of them is a change.
    let files = ["", "conf.d", "conf.d/10.toml", "conf.d/20.toml", "config.toml"].map(|name| folder.0.join(name));
    assert_eq!(config.files.iter().collect::<std::collections::BTreeSet<_>>(), files.iter().collect());
}

/// Some editors empty a file before they write it.
#[test]
fn included_file_that_is_empty_is_a_problem() {
    let folder = Folder::new("empty-include");
    folder.write("config.toml", 0o644, b"include = [\"conf.d/*.toml\"]\n").write("conf.d/10.toml", 0o644, b"");
    let rejected = folder.load().unwrap_err();
    let messages: Vec<_> = rejected.problems.iter().map(|problem| problem.message.as_str()).collect();
    assert_eq!(messages, [format!("the included file {} is empty", folder.0.join("conf.d/10.toml").display())]);
    folder.write("conf.d/10.toml", 0o644, b"# nothing yet\n");
    folder.config();
}

#[test]
fn symlinked_configuration_is_read_relative_to_the_link() {
    let folder = Folder::new("symlink");
    folder.write("real/config.toml", 0o644, &signer("file:a")).write("a", 0o600, b"whsec_AAAA");
    symlink("real/config.toml", folder.0.join("config.toml")).unwrap();
    assert_eq!(secret(&folder.config()), b"whsec_AAAA");
}

#[test]
fn configuration_digest_changes_with_every_file_and_with_nothing_else() {
    let folder = Folder::new("digest");
    let main = [b"include = [\"conf.d/*.toml\"]\n".to_vec(), signer("file:a")].concat();
    folder.write("config.toml", 0o644, &main).write("a", 0o600, b"whsec_AAAA");
    let mut digests = vec![folder.config().digest];
    assert_eq!(folder.config().digest, digests[0]);
    folder.write("a", 0o600, b"whsec_BBBB");
    digests.push(folder.config().digest);
    folder.write("conf.d/x.toml", 0o644, b"#");
    digests.push(folder.config().digest);
    folder.write("config.toml", 0o644, &[main, b"# x".to_vec()].concat());
    digests.push(folder.config().digest);
    digests.sort();
    digests.dedup();
    assert_eq!(digests.len(), 4);
}

#[test]
fn certificates_are_read_from_pem() {
    let folder = Folder::new("pem");
    let key = rcgen::generate_simple_self_signed(vec!["ca.example".into()]).unwrap();
    folder.write("ca.pem", 0o644, (key.cert.pem() + &key.cert.pem()).as_bytes());
    folder.write("config.toml", 0o644, b"[trust.internal]\nroots = [\"ca.pem\", \"mozilla\"]\n");
    let config = folder.config();
    let trust = config.trust.values().next().unwrap();
    let config::Roots::File(path, certificates) = &trust.roots[0].value else { panic!("{trust:?}") };
    assert_eq!((path, certificates.len()), (&folder.0.join("ca.pem"), 2));
    assert_eq!(certificates[0], key.cert.der().to_vec());
    assert_eq!(config.files, [folder.0.join("ca.pem"), folder.0.join("config.toml")]);
}

#[test]
fn configuration_file_beyond_the_size_limit_is_refused() {
    let folder = Folder::new("large");
    folder.write("config.toml", 0o644, &vec![b'#'; (8 << 20) + 1]);
    let problems = folder.load().unwrap_err().problems;
    assert!(problems[0].message.ends_with("config.toml is larger than 8 MiB"), "{problems:?}");
}

#[test]
fn problems_of_a_configuration_are_bounded() {
    let text: String = (0..5000).map(|number| format!("x{number} = 1\n")).collect();
    let rejected = config::parse(&text, Path::new("c.toml")).unwrap_err();
    assert_eq!(rejected.problems.len(), 1001);
    let text = "x = \n".repeat(5000);
    assert!((1..=1001).contains(&config::parse(&text, Path::new("c.toml")).unwrap_err().problems.len()));
}

#[test]
fn default_configuration_serves_anonymous_clients_on_loopback() {
    let addresses = ["192.0.2.7".parse().unwrap(), "2001:db8::7".parse().unwrap()];
    let config = config::builtin(&addresses).unwrap().config;
    let [listen] = config.server.listen.as_slice() else { panic!("{:?}", config.server) };
    assert_eq!(listen.address.to_string(), "127.0.0.1:4750");
    assert!(config.server.allow_anonymous.value && config.clients.is_empty());
    let ranges: Vec<String> = config.egress["default"].ranges.iter().map(|range| range.cidr.to_string()).collect();
    assert_eq!(ranges, ["192.0.2.7/32", "2001:db8::7/128"]);
    let [route] = config.routes.as_slice() else { panic!("{:?}", config.routes) };
    assert_eq!((route.name.as_str(), route.hosts[0].as_str()), ("default", "*"));
    assert_eq!(config.files, Vec::<PathBuf>::new());
    assert_eq!(config::builtin(&[]).unwrap_err().problems.len(), 1);
}

const KEY: &[u8] = b"whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";

/// Returns the number of keys of the tenant in the key_dir.
fn tenant<'c>(config: &'c Config, name: &str) -> &'c Arc<KeyFolder> {
    &config.key_dirs.values().next().unwrap().tenants[name]
}

#[test]
fn key_dir_reload_reads_only_the_folder_that_changed() {
    let folder = Folder::new("tenants");
    let names = ["acme", "globex", "initech"].map(TenantName::new);
    for name in &names {
        folder.write(&format!("keys/{name}/k1.key"), 0o600, KEY);
    }
    let text = "[egress.default]\nranges = [\"192.0.2.1\"]\n\
                [signers.a]\nscheme = \"standard-webhooks\"\nkey_dir = \"keys\"\n";
    folder.write("config.toml", 0o644, text.as_bytes());
    let again =
        |known: &Config| config::load_incremental(&folder.0.join("config.toml"), &known.key_dirs).unwrap().config;
    let is_same = |one: &Config, other: &Config| {
        names.each_ref().map(|name| Arc::ptr_eq(tenant(one, name.as_str()), tenant(other, name.as_str())))
    };
    // outgate reads all folders again while another change could have the same timestamp. No event marks that end.
    let mut before = folder.config();
    eventually("no key folder is read again", || {
        let next = again(&before);
        assert_eq!(next.digest, before.digest);
        let is_same = is_same(&before, &next) == [true; 3];
        before = next;
        is_same
    });
    let plan = policy::compile(&before, Timestamp::UNIX_EPOCH).unwrap().0;

    // One file is overwritten in place with the same length. The other has only a new timestamp.
    folder.write("keys/globex/k1.key", 0o600, b"whsec_D2FVsBQIhrscChlQIMV+b5sSYspob7oD");
    folder.write("keys/initech/k1.key", 0o600, KEY);
    let next = again(&before);
    assert_eq!(is_same(&before, &next), [true, false, false]);
    assert_ne!(next.digest, before.digest);
    let digests = |config: &Config| names.each_ref().map(|name| tenant(config, name.as_str()).digest);
    let (old, new) = (digests(&before), digests(&next));
    assert!(old[0] == new[0] && old[1] != new[1] && old[2] == new[2]);
    let after = policy::recompile(&next, Some(&plan), Timestamp::UNIX_EPOCH).unwrap().0;
    let kept = names.each_ref().map(|name| {
        let keys = |plan: &policy::Plan| std::ptr::from_ref(plan.signers["a"].keys_of(Some(name)).unwrap());
        keys(&plan) == keys(&after)
    });
    assert_eq!(kept, [true, false, true]);

    // Another scheme makes other keys of the same files.
    folder.write("config.toml", 0o644, text.replace_one("standard-webhooks", "stripe").as_bytes());
    let other = policy::recompile(&again(&next), Some(&plan), Timestamp::UNIX_EPOCH).unwrap().0;
    let algorithm = |plan: &policy::Plan| plan.signers["a"].scheme();
    assert_eq!((algorithm(&plan), algorithm(&other)), ("standard-webhooks", "stripe"));
    let keys = |plan: &policy::Plan| std::ptr::from_ref(plan.signers["a"].keys_of(Some(&names[0])).unwrap());
    assert_ne!(keys(&plan), keys(&other));
}

#[test]
fn key_dir_is_watched_as_a_whole_even_if_a_key_is_broken() {
    let folder = Folder::new("watched");
    folder.write("keys/acme/k1.key", 0o600, KEY).write("keys/broken/k1.key", 0o600, b"").write("keys/file", 0o600, b"");
    fs::create_dir_all(folder.0.join("keys/empty")).unwrap();
    folder.write("config.toml", 0o644, b"[signers.a]\nscheme = \"stripe\"\nkey_dir = \"keys\"\n");
    let config = folder.config();
    let mut watched: Vec<PathBuf> = config.key_dirs.values().flat_map(|key_dir| key_dir.folder_paths()).collect();
    watched.sort();
    assert_eq!(watched, ["keys", "keys/acme", "keys/broken", "keys/empty"].map(|name| folder.0.join(name)));
    assert!(config.files.contains(&folder.0.join("keys")), "{:?}", config.files);
}
