//! The libraries of receivers verify the webhooks that outgate delivered.
//! Does each library accept signatures by the old and the new key, and none over another body?
//!
//! Needs what `tests/clients/install` installs: skipped where it is missing, required with `OUTGATE_TEST_ALL=1`.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use std::collections::HashMap;
use std::process::Command;

use serde_json::{Value, json};
use support::clients::InstalledClients;
use support::clients::Language::{self, Node, Python};
use support::configuration::Replace;
use support::pki::Pki;
use support::receiver::{ReceivedRequest, Receiver, ok};
use support::scene::{config, folder};
use support::{Folder, Outgate};

/// The signers with two keys each: name, scheme, algorithm, further options, and whether receivers read only one
/// signature.
const SIGNERS: &[(&str, &str, &str, &str, bool)] = &[
    ("standard", "standard-webhooks", "hmac-sha256", "", false),
    ("stripe", "stripe", "hmac-sha256", "", false),
    ("slack", "slack", "hmac-sha256", "", true),
    ("sendgrid", "sendgrid", "ecdsa-p256-sha256", "", true),
    ("twilio", "twilio", "hmac-sha1", "", true),
    ("twilio-shared", "twilio", "hmac-sha256", "algorithm = \"hmac-sha256\"", true),
    ("ed25519", "rfc9421", "ed25519", "", false),
    ("p256", "rfc9421", "ecdsa-p256-sha256", "", false),
    ("rsa", "rfc9421", "rsa-pss-sha512", "", false),
    ("hmac", "rfc9421", "hmac-sha256", "", false),
    // Signatures that the libraries do not support must not break those that they support.
    ("v1a", "standard-webhooks", "ed25519", "", false),
    ("bot", "rfc9421", "ed25519", BOT, false),
    ("acme", "rfc9421", "ecdsa-p256-sha256", ACME, false),
];

/// The options of Web Bot Auth, and those of one receiver.
const BOT: &str = "tag = \"web-bot-auth\"\nlabel = \"bot\"\nlifetime = \"1h\"\ncomponents = [\"@authority\"]\n\
                   signature_agent = \"https://signer.example\"";
const ACME: &str = "tag = \"acme-events\"\nlabel = \"acme\"\ncomponents = [\"@method\", \"@target-uri\", \
                    '@query-param;name=\"b\"', \"content-digest;sf\", \"x-event;bs\", 'priority;key=\"u\"', \"x-absent\"]";

/// The signers whose webhooks each library verifies.
const LIBRARIES: &[(Language, &str, &[&str])] = &[
    (Python, "standardwebhooks", &["standard"]),
    (Python, "svix", &["standard"]),
    (Node, "standardwebhooks", &["standard"]),
    (Node, "svix", &["standard"]),
    (Python, "stripe", &["stripe"]),
    (Python, "slack_sdk", &["slack"]),
    (Python, "sendgrid", &["sendgrid"]),
    (Python, "twilio", &["twilio", "twilio-shared"]),
    // The Node library does not support shared keys.
    (Node, "twilio", &["twilio"]),
    (Python, "http_message_signatures", &["ed25519", "p256", "rsa", "hmac"]),
];

const JSON: (&str, &str) =
    ("application/json", "{\"event\":\"payment.captured\",\"note\":\"Größe ½\",\"list\":[1,2.50]}\r\n");
const FORM: (&str, &str) = (
    "application/x-www-form-urlencoded",
    "To=%2B18005551212&From=%2b14158675309&Body=It%27s+%C3%B1&Digits=5678&Digits=1234&Digits=1234&Empty=&body=x",
);
/// The headers of a client with its own signature for the receiver.
const FOREIGN: &str = "Signature-Input: sig1=(\"@method\");created=1;keyid=\"theirs\";tag=\"theirs\"\r\n\
                       Signature: sig1=:AAAA:\r\n";

/// The headers of a platform that used Svix before. The Svix libraries read these first.
const SVIX: &str = "Svix-Id: msg_theirs\r\nsvix-timestamp: 1\r\nSvix-Signature: v1,AAAA\r\n";

struct Scene {
    outgate: Outgate,
    receiver: Receiver,
    installed: InstalledClients,
    /// The secret or the public key by signer and key.
    keys: HashMap<(String, String), String>,
    /// The thumbprint of a key pair by signer and key.
    thumbprints: HashMap<(String, String), String>,
}

fn run(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_outgate")).args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn new_key(folder: &Folder, file: &str, scheme: &str, algorithm: &str) -> String {
    let path = folder.path(file);
    run(&["keys", "new", "--scheme", scheme, "--algorithm", algorithm, "--out", path.to_str().unwrap()]);
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

impl Scene {
    fn new(installed: InstalledClients) -> Self {
        let pki = Pki::new();
        let hosts: Vec<String> = SIGNERS.iter().map(|(name, ..)| format!("{name}.example")).collect();
        let names: Vec<&str> = hosts.iter().map(String::as_str).chain(["both.example"]).collect();
        let receiver = Receiver::tls(pki.leaf(&names), ok());
        let folder = folder(&pki);
        let mut keys = HashMap::new();
        let (mut signers, mut routes) = (String::new(), String::new());
        let route = |name: &str, sign: &str| {
            let port = receiver.port();
            format!("[[routes]]\nname = {name:?}\nhosts = [\"{name}.example\"]\nports = [{port}]\nsign = [{sign}]\n")
        };
        for (name, scheme, algorithm, more, is_one) in SIGNERS {
            for key in ["old", "new", "other"] {
                let secret = new_key(&folder, &format!("{name}-{key}"), scheme, algorithm);
                keys.insert(((*name).to_owned(), key.to_owned()), secret);
            }
            let from = if *is_one { ", from = \"2020-01-01T00:00:00Z\"" } else { "" };
            signers += &format!(
                "[signers.{name}]\nscheme = {scheme:?}\n{more}\nkeys = [\n\
                 {{ id = \"old\", secret = \"file:{{dir}}/{name}-old\" }},\n\
                 {{ id = \"new\", secret = \"file:{{dir}}/{name}-new\"{from} }},\n]\n"
            );
            routes += &route(name, &format!("{name:?}"));
        }
        routes += &route("both", "\"ed25519\", \"standard\", \"stripe\", \"twilio\"");
        let hosts: String = names.iter().map(|host| format!("{host:?} = [\"127.0.0.1\"]\n")).collect();
        let text = config(&receiver, &receiver, &signers).and(&format!("[resolver.hosts]\n{hosts}")).and(&routes);
        let outgate = Outgate::run(folder, &text);
        let file = outgate.folder.path("config.toml");
        let pem = run(&["keys", "public", "--format", "pem", "--config", file.to_str().unwrap()]);
        for block in pem.split_inclusive("-----END PUBLIC KEY-----\n") {
            let (line, armoured) = block.split_once('\n').unwrap();
            let mut words = line.split(' ').map(str::to_owned);
            keys.insert((words.next().unwrap(), words.next().unwrap()), armoured.trim().to_owned());
        }
        let listed = run(&["keys", "list", "--json", "--config", file.to_str().unwrap()]);
        let listed: Vec<HashMap<String, Value>> = serde_json::from_str(&listed).unwrap();
        let thumbprint = |key: &HashMap<String, Value>| {
            let text = |name: &str| key[name].as_str().map(str::to_owned);
            Some(((text("signer")?, text("id")?), text("thumbprint")?))
        };
        let thumbprints = listed.iter().filter_map(thumbprint).collect();
        Self { outgate, receiver, installed, keys, thumbprints }
    }

    fn deliver(&self, host: &str, (content_type, body): (&str, &str), more: &str) -> ReceivedRequest {
        let url = format!("https://{host}.example:{}/in/{host}?a=1&b=%20x", self.receiver.port());
        let response = self.outgate.post(&url, &format!("Content-Type: {content_type}\r\n{more}"), body);
        assert_eq!((response.status, response.text().as_str()), (200, "ok"), "{host}: {response:?}");
        self.receiver.requests().pop().unwrap()
    }

    /// Returns the key argument for a library. For message signatures, it has all keys and the selection.
    fn key(&self, signer: &str, ids: &[&str], label: Option<&str>) -> Value {
        let key = |id: &str| self.keys[&(signer.to_owned(), id.to_owned())].clone();
        let (_, scheme, algorithm, ..) = SIGNERS.iter().find(|(name, ..)| *name == signer).unwrap();
        if *scheme != "rfc9421" {
            return key(ids[0]).into();
        }
        let keyid = |id: &str| {
            let pair = self.thumbprints.get(&(signer.to_owned(), id.to_owned()));
            pair.map_or(id, String::as_str).to_owned()
        };
        let keys: HashMap<String, String> = ids.iter().map(|id| (keyid(id), key(id))).collect();
        json!({ "algorithm": algorithm, "keys": keys, "label": label })
    }
}

fn request(library: &str, received: &ReceivedRequest, key: Value) -> Value {
    let mut line = received.line.split(' ');
    let (method, path) = (line.next().unwrap(), line.next().unwrap());
    let headers: HashMap<_, _> =
        received.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    json!({
        "library": library, "method": method, "url": format!("https://{}{path}", received.field("host")),
        "headers": headers, "body": std::str::from_utf8(&received.body).unwrap(), "key": key,
    })
}

fn with_another_body(received: &ReceivedRequest) -> ReceivedRequest {
    let mut received = received.clone();
    let last = received.body.iter().rposition(u8::is_ascii_alphanumeric).unwrap();
    received.body[last] ^= 1;
    received
}

/// Returns each request with its description, and whether the library must accept it.
type Cases = Vec<(Value, String, bool)>;

fn cases(scene: &Scene, library: &str, signer: &str) -> Cases {
    let is_one = SIGNERS.iter().any(|(name, .., is_one)| *name == signer && *is_one);
    let forms = if library == "twilio" { &[JSON, FORM][..] } else { &[JSON] };
    let mut cases = Cases::new();
    for form in forms {
        let (more, first) = match signer {
            "ed25519" => (FOREIGN, 2),
            "standard" => (SVIX, 1),
            _ => ("", 1),
        };
        let received = scene.deliver(signer, *form, more);
        let (first, second) = (format!("sig{first}"), format!("sig{}", first + 1));
        let mut case = |received: &ReceivedRequest, key: Value, label: &str, expected: bool| {
            cases.push((request(library, received, key), format!("{library} {signer} {}: {label}", form.0), expected));
        };
        case(&received, scene.key(signer, &["new", "old"], None), "the new key", true);
        case(&received, scene.key(signer, &["old"], Some(&first)), "the old key", !is_one);
        case(&with_another_body(&received), scene.key(signer, &["new", "old"], None), "another body", false);
        if library == "http_message_signatures" {
            case(&received, scene.key(signer, &["new"], Some(&second)), "the new key alone", true);
            let both = scene.key(signer, &["new", "old"], None);
            let posted = ReceivedRequest { line: received.line.replace_one("a=1", "a=2"), ..received.clone() };
            case(&posted, both, "another query", false);
        } else {
            case(&received, scene.key(signer, &["other"], None), "a key of nobody", false);
        }
        if library == "twilio" {
            let elsewhere = ReceivedRequest { line: received.line.replace_one("a=1", "a=2"), ..received.clone() };
            case(&elsewhere, scene.key(signer, &["new"], None), "another query", false);
        }
    }
    cases
}

#[test]
fn receiver_libraries_accept_signed_webhooks_and_nothing_else() {
    let Some(installed) = InstalledClients::open() else { return };
    let scene = Scene::new(installed);
    for language in [Python, Node] {
        let mut all = Cases::new();
        for (_, library, signers) in LIBRARIES.iter().filter(|(other, ..)| *other == language) {
            signers.iter().for_each(|signer| all.extend(cases(&scene, library, signer)));
            // Several signers of one webhook do not interfere.
            let both = scene.deliver("both", JSON, FOREIGN);
            for signer in signers.iter().filter(|signer| ["ed25519", "standard", "stripe", "twilio"].contains(signer)) {
                let key = scene.key(signer, &["new", "old"], None);
                all.push((request(library, &both, key), format!("{library} {signer} among others"), true));
            }
        }
        let requests: Vec<Value> = all.iter().map(|(request, ..)| request.clone()).collect();
        let responses = scene.installed.verify(language, &requests);
        let wrong: Vec<_> = all
            .iter()
            .zip(&responses)
            .filter(|((.., expected), (valid, _))| valid != expected)
            .map(|((_, label, expected), (valid, error))| format!("{label}: {valid}, not {expected} {error}"))
            .collect();
        assert!(wrong.is_empty(), "{language:?}:\n{}", wrong.join("\n"));
        assert!(responses.iter().filter(|(valid, _)| *valid).count() >= 6, "{language:?}");
    }
}

#[test]
fn receiver_libraries_skip_unknown_signature_versions() {
    let Some(installed) = InstalledClients::open() else { return };
    let scene = Scene::new(installed);
    let shared = scene.keys[&("standard".to_owned(), "new".to_owned())].clone();
    let received = scene.deliver("v1a", JSON, "");
    assert!(received.field("webhook-signature").starts_with("v1a,"), "{received:?}");
    for language in [Python, Node] {
        let responses =
            scene.installed.verify(language, &[request("standardwebhooks", &received, shared.clone().into())]);
        assert!(
            !responses[0].0 && responses[0].1.contains("No matching signature found"),
            "{language:?}: {responses:?}"
        );
    }
}

#[test]
fn message_signatures_of_other_profiles_verify() {
    let Some(installed) = InstalledClients::open() else { return };
    let scene = Scene::new(installed);
    let profile = |signer: &str, label: &str, tag: &str, components: &[&str]| {
        let mut key = scene.key(signer, &["new", "old"], Some(label));
        key["tag"] = tag.into();
        key["components"] = json!(components);
        key
    };
    let agent = ["@authority", "\"signature-agent\";key=\"bot\""];
    let agent_of_the_second = ["@authority", "\"signature-agent\";key=\"bot2\""];
    let acme = ["@target-uri", "\"@query-param\";name=\"b\"", "\"x-event\";bs", "\"priority\";key=\"u\""];
    let (bot, event) =
        (scene.deliver("bot", JSON, ""), scene.deliver("acme", JSON, "X-Event: a, b\r\nPriority: u=1\r\n"));
    assert_eq!(bot.field("signature-agent"), "bot=\"https://signer.example\", bot2=\"https://signer.example\"");
    let elsewhere = ReceivedRequest { line: event.line.replace_one("b=%20x", "b=y"), ..event.clone() };
    let mut other_agent = bot.clone();
    for (_, value) in other_agent.fields.iter_mut().filter(|(name, _)| name.eq_ignore_ascii_case("signature-agent")) {
        *value = value.replace_all("signer", "other");
    }
    let library = "http_message_signatures";
    let cases = [
        (request(library, &bot, profile("bot", "bot", "web-bot-auth", &agent)), true),
        (request(library, &bot, profile("bot", "bot2", "web-bot-auth", &agent_of_the_second)), true),
        (request(library, &other_agent, profile("bot", "bot", "web-bot-auth", &agent)), false),
        (request(library, &bot, profile("bot", "bot", "webhook", &agent)), false),
        (request(library, &event, profile("acme", "acme", "acme-events", &acme)), true),
        (request(library, &event, profile("acme", "acme2", "acme-events", &acme)), true),
        (request(library, &elsewhere, profile("acme", "acme", "acme-events", &acme)), false),
    ];
    let requests: Vec<Value> = cases.iter().map(|(request, _)| request.clone()).collect();
    for ((request, expected), (valid, error)) in cases.iter().zip(scene.installed.verify(Python, &requests)) {
        assert_eq!(valid, *expected, "{request:#}: {error}");
    }
}
