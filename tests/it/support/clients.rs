//! The unmodified clients of tests/clients, run as a user's program runs them.
//! Which clients are installed, and which response does each report?

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::Value;

use super::{Folder, required};

/// A request for a client to send.
#[derive(Clone)]
pub struct ClientRequest {
    pub method: &'static str,
    pub url: String,
    pub headers: Vec<(String, String)>,
    pub body: Option<String>,
    /// Command-line options, for curl alone.
    pub options: Vec<&'static str>,
}

/// The report of a client: a response, or the client's error message.
#[derive(Debug)]
pub struct Report {
    pub status: u16,
    pub headers: HashMap<String, String>,
    pub body: String,
    pub error: String,
}

/// The Python of the client programs, and a folder with a `node_modules` beside the Node programs.
pub struct InstalledClients {
    installed: PathBuf,
    python: PathBuf,
    folder: Folder,
}

const NODE_PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients");
const SENDERS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/senders");

impl InstalledClients {
    /// Finds the clients that `tests/clients/install` has put into the folder `OUTGATE_TEST_CLIENTS`. Returns `None` if a
    /// client is missing and not required.
    pub fn open() -> Option<Self> {
        let installed = std::env::var_os("OUTGATE_TEST_CLIENTS")
            .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients"), PathBuf::from);
        let (python, modules) = (installed.join("python/bin/python"), installed.join("node_modules"));
        let programs = ["curl", "wget", "node"];
        let absent: Vec<_> = programs
            .into_iter()
            .filter(|program| Command::new(program).arg("--version").output().is_err())
            .map(PathBuf::from)
            .chain([&python, &modules].into_iter().filter(|path| !path.exists()).cloned())
            .collect();
        if !absent.is_empty() {
            assert!(!required(), "missing: {absent:?}; tests/clients/install installs them");
            eprintln!("skipped: {absent:?} missing; tests/clients/install installs them");
            return None;
        }
        // Node looks for modules in a `node_modules` folder beside the program or above it.
        let folder = Folder::new();
        std::os::unix::fs::symlink(modules, folder.path("node_modules")).unwrap();
        for entry in std::fs::read_dir(NODE_PROGRAMS).unwrap().map(Result::unwrap) {
            if entry.path().extension().is_some_and(|extension| extension == "mjs") {
                std::fs::copy(entry.path(), folder.path(entry.file_name().to_str().unwrap())).unwrap();
            }
        }
        Some(Self { installed, python, folder })
    }

    /// Returns whether a client is installed. Go and Java clients need compilers. Ruby clients are Debian packages.
    pub fn has(&self, client: &str) -> bool {
        if let Some(library) = ["excon", "httpclient"].into_iter().find(|library| client == *library) {
            let loaded = Command::new("ruby").args(["-r", library, "-e", ""]).stderr(Stdio::null()).status();
            let is_there = loaded.is_ok_and(|status| status.success());
            assert!(is_there || !required(), "missing: ruby-{library}");
            if !is_there {
                eprintln!("skipped: {client}; it is in Debian's ruby-{library}");
            }
            return is_there;
        }
        let built = match client {
            "go" => "go_client",
            "apache" => "java/classpath",
            _ => return true,
        };
        let is_there = self.installed.join(built).exists();
        assert!(is_there || !required(), "missing: {built}; tests/clients/install builds it");
        if !is_there {
            eprintln!("skipped: {client}; tests/clients/install builds {built}");
        }
        is_there
    }

    /// A linter of TOML, which validates a file against a JSON Schema.
    pub fn taplo(&self) -> Command {
        Command::new(self.installed.join("python/bin/taplo"))
    }

    pub fn envoy(&self) -> Command {
        Command::new(self.installed.join("python/bin/envoy"))
    }

    /// Compiles a program in C#.
    fn compiled_by_mono(&self, source: &Path) -> PathBuf {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let program = self.folder.path(&format!("send-{}.exe", COUNT.fetch_add(1, Ordering::Relaxed)));
        let mut compiler = Command::new("mcs");
        compiler.arg("-reference:System.Net.Http.dll").arg(format!("-out:{}", program.display())).arg(source);
        let output = compiler.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        program
    }

    /// A validator of Kubernetes manifests, with the schemas of many versions.
    pub fn kubernetes_validate(&self) -> Command {
        let mut command = Command::new(&self.python);
        command.arg("-m").arg("kubernetes_validate");
        command
    }

    /// Returns the documents of a YAML file.
    pub fn yaml(&self, file: &Path) -> Vec<Value> {
        let output = self.python("yaml_to_json").arg(file).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}: {output:?}", file.display()))
    }

    /// Runs `client`, which sends all the requests in one session.
    pub fn run(&self, client: &str, proxy: &str, ca: &Path, form: &str, requests: &[ClientRequest]) -> Vec<Report> {
        let mut command = match client {
            "go" => Command::new(self.installed.join("go_client")),
            "apache" => {
                let path = std::fs::read_to_string(self.installed.join("java/classpath")).unwrap();
                let mut java = Command::new("java");
                java.args(["-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-cp", path.trim(), "ApacheClient"]);
                java
            }
            _ => self.program(&format!("{client}_client")),
        };
        command.args([proxy, ca.to_str().unwrap(), form]);
        let reports = exchange_lines(command, &format!("{client} {form}"), requests.iter().map(ClientRequest::as_json));
        reports.iter().map(|line| Report::read(line)).collect()
    }

    /// Returns the verdict of a language's library on each request: whether it is valid, and the error otherwise.
    pub fn verify(&self, language: Language, requests: &[Value]) -> Vec<(bool, String)> {
        let command = match language {
            Language::Python => self.python("verify"),
            Language::Node => self.program("verify"),
        };
        let verdict = |line: &String| {
            let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
            (value["valid"] == true, value["error"].as_str().unwrap_or_default().to_owned())
        };
        exchange_lines(command, "verify", requests.iter().cloned()).iter().map(verdict).collect()
    }

    /// A target of `tests/origins`, with the packages that are installed for the clients.
    pub fn origin(&self, language: Language, name: &str) -> Command {
        let folder = Path::new(NODE_PROGRAMS).with_file_name("origins");
        let (interpreter, file) = match language {
            Language::Python => (self.python.as_path(), format!("{name}.py")),
            Language::Node => (Path::new("node"), format!("{name}.mjs")),
        };
        let mut command = Command::new(interpreter);
        command.arg(folder.join(file)).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// The program in Ruby or Node if there is one, otherwise in Python.
    fn program(&self, name: &str) -> Command {
        let ruby = Path::new(NODE_PROGRAMS).join(format!("{name}.rb"));
        if ruby.exists() {
            let mut command = Command::new("ruby");
            command.arg(ruby);
            return command;
        }
        let node = self.folder.path(&format!("{name}.mjs"));
        if !node.exists() {
            return self.python(name);
        }
        let mut command = Command::new("node");
        command.arg(node);
        command
    }

    /// A program of `examples/senders`. `None`: its client is not installed.
    pub fn sender(&self, file: &str) -> Option<Command> {
        const JARS: &str = "/usr/share/java";
        let (folder, jar) = (Path::new(SENDERS), |name: &str| Path::new(JARS).join(format!("{name}.jar")));
        let mut command = match file {
            "rust/src/main.rs" => Command::new(self.installed.join("rust/debug/send")),
            // Mono has .NET's library and a compiler of C#.
            "dotnet/Program.cs" => Command::new("mono"),
            _ => match file.rsplit_once('.').expect("a file of a language").1 {
                "sh" => Command::new("sh"),
                "py" => Command::new(&self.python),
                "mjs" => Command::new("node"),
                "go" => Command::new("go"),
                "java" => Command::new("java"),
                "rb" => Command::new("ruby"),
                "php" => Command::new("php"),
                language => panic!("no program runs {language}"),
            },
        };
        let has = |arguments: &[&str]| {
            let mut probe = Command::new(command.get_program());
            probe
                .args(arguments)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .is_ok_and(|status| status.success())
        };
        let is_there = match file {
            "rust/src/main.rs" => Path::new(command.get_program()).exists(),
            "dotnet/Program.cs" => has(&["--version"]) && Command::new("mcs").arg("--version").output().is_ok(),
            "send.go" => has(&["version"]),
            "SendHttpClient.java" => has(&["-version"]),
            "SendOkHttp.java" => has(&["-version"]) && jar("okhttp").exists(),
            "SendApache.java" => has(&["-version"]) && jar("httpclient").exists(),
            "send.rb" => has(&["--version"]),
            "send.php" => has(&["-r", "exit(extension_loaded('curl') ? 0 : 1);"]),
            _ => true,
        };
        assert!(is_there || !required(), "{file}: its client is missing; .ci/run installs it");
        if !is_there {
            eprintln!("skipped: {file}; .ci/run installs its client");
            return None;
        }
        match file.rsplit_once('.').expect("a file of a language").1 {
            "rs" => {}
            "cs" => drop(command.arg(self.compiled_by_mono(&folder.join(file)))),
            // Node looks for modules beside the program.
            "mjs" => {
                let copy = self.folder.path(file);
                std::fs::copy(folder.join(file), &copy).unwrap();
                command.arg(copy);
            }
            "go" => drop(command.arg("run").arg(folder.join(file))),
            "java" => {
                let jars = ["okhttp", "okio", "httpclient", "httpcore", "commons-logging", "commons-codec"].map(jar);
                let path = std::env::join_paths(jars).unwrap();
                command.arg("-XX:TieredStopAtLevel=1").arg("-cp").arg(path);
                command.arg("-Djdk.http.auth.tunneling.disabledSchemes=").arg(folder.join(file));
            }
            _ => drop(command.arg(folder.join(file))),
        }
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        without_proxy_variables(&mut command);
        Some(command)
    }

    /// A program of tests/clients in Node.
    pub fn node(&self, name: &str) -> Command {
        let mut command = Command::new("node");
        command.arg(self.folder.path(&format!("{name}.mjs")));
        command
    }

    /// A program of tests/clients, run by the Python that has their packages.
    pub fn python(&self, name: &str) -> Command {
        let mut command = Command::new(&self.python);
        command.arg(Path::new(NODE_PROGRAMS).join(format!("{name}.py")));
        command.env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Language {
    Python,
    Node,
}

fn without_proxy_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().to_ascii_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
}

/// Writes one line of JSON for each input, and returns one line of output for each.
fn exchange_lines(mut command: Command, label: &str, questions: impl ExactSizeIterator<Item = Value>) -> Vec<String> {
    without_proxy_variables(&mut command);
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the program runs");
    let mut input = child.stdin.take().unwrap();
    let count = questions.len();
    for question in questions {
        // If the program has ended, the assertion below shows its stderr.
        if writeln!(input, "{question}").is_err() {
            break;
        }
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{label}: {out}\n{err}");
    let responses: Vec<_> = out.lines().map(str::to_owned).collect();
    assert_eq!(responses.len(), count, "{label}: {out}\n{err}");
    responses
}
impl ClientRequest {
    fn as_json(&self) -> Value {
        let headers: serde_json::Map<_, _> =
            self.headers.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
        serde_json::json!({
            "method": self.method, "url": self.url, "headers": headers, "body": self.body, "options": self.options,
        })
    }
}

impl Report {
    fn read(line: &str) -> Self {
        let value: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}"));
        let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
        let headers = value["headers"].as_object().cloned().unwrap_or_default();
        Self {
            status: value["status"].as_u64().unwrap_or_default().try_into().unwrap(),
            headers: headers.into_iter().map(|(n, v)| (n, v.as_str().unwrap_or_default().to_owned())).collect(),
            body: text("body"),
            error: text("error"),
        }
    }
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}
