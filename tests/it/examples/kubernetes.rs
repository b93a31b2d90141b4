//! `examples/kubernetes`: manifests, checked without a cluster.
//! Do the manifests fit the schemas, and does outgate run with what they say?

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::{checked, config, folder_with, new_key, path, receiver_on_this_host, verify_with_public_key};
use crate::support::clients::InstalledClients;
use crate::support::configuration::{Config, Replace, token_hash};
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::{Folder, Outgate, eventually};

const FILES: [&str; 5] = ["namespace.yaml", "config.yaml", "daemonset.yaml", "service.yaml", "network-policy.yaml"];
/// The newest version of the validator, and an old one that clusters still have.
const VERSIONS: [&str; 2] = ["1.37", "1.29"];
const HOST: &str = "hooks.acme.example";

fn is_valid(installed: &InstalledClients, version: &str, file: &Path) -> bool {
    let mut command = installed.kubernetes_validate();
    command.args(["--strict", "--kubernetes-version", version]).arg(file).output().unwrap().status.success()
}

#[test]
fn manifests_fit_the_schemas_and_a_wrong_one_does_not() {
    let Some(installed) = InstalledClients::open() else { return };
    let folder = Folder::new();
    let text = std::fs::read_to_string(path("kubernetes/daemonset.yaml")).unwrap();
    let misspelt = folder.write("misspelt.yaml", text.replace_one("readOnlyRootFilesystem", "readOnlyRootFileSystem"));
    let mistyped = folder.write("mistyped.yaml", text.replace_one("minReadySeconds: 10", "minReadySeconds: ten"));
    for version in VERSIONS {
        for file in FILES {
            let file = path("kubernetes").join(file);
            assert!(is_valid(&installed, version, &file), "{version}: {}", file.display());
        }
        assert!(!is_valid(&installed, version, &misspelt) && !is_valid(&installed, version, &mistyped), "{version}");
    }
    let found = std::fs::read_dir(path("kubernetes")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(found.filter(|name| name.to_string_lossy().ends_with(".yaml")).count(), FILES.len());
}

/// Returns the only document of a file.
fn only(installed: &InstalledClients, file: &str) -> Value {
    let [document] = installed.yaml(&path("kubernetes").join(file)).try_into().unwrap();
    document
}

fn pod(installed: &InstalledClients) -> Value {
    installed.yaml(&path("kubernetes/daemonset.yaml"))[0]["spec"]["template"].clone()
}

#[test]
fn pods_have_the_network_of_their_node_and_no_privilege() {
    let Some(installed) = InstalledClients::open() else { return };
    let pod = pod(&installed);
    let (spec, container) = (&pod["spec"], &pod["spec"]["containers"][0]);
    assert_eq!((&spec["hostNetwork"], &spec["automountServiceAccountToken"]), (&json!(true), &json!(false)));
    assert_eq!(
        (&spec["securityContext"]["runAsNonRoot"], &spec["securityContext"]["runAsUser"]),
        (&json!(true), &json!(65532))
    );
    assert_eq!(spec["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
    let context = json!({
        "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
    });
    assert_eq!(container["securityContext"], context);

    // Each mount has its volume.
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().map(|item| item["name"].as_str().unwrap().to_owned()).collect()
    };
    let set = &installed.yaml(&path("kubernetes/daemonset.yaml"))[0]["spec"];
    let sorted = |list: Vec<String>| list.into_iter().collect::<BTreeSet<_>>();
    assert_eq!(sorted(names(&container["volumeMounts"])), sorted(names(&spec["volumes"])));

    // The Service selects the pods, and the policy opens the port of the pods.
    let labels = &pod["metadata"]["labels"];
    let (service, policy) = (only(&installed, "service.yaml"), only(&installed, "network-policy.yaml"));
    for selector in [&set["selector"]["matchLabels"], &service["spec"]["selector"]] {
        assert_eq!(selector, labels);
    }
    let port = &container["ports"][0];
    assert_eq!(
        (&port["name"], &port["containerPort"]),
        (&service["spec"]["ports"][0]["targetPort"], &port["hostPort"])
    );
    assert_eq!(policy["spec"]["egress"][0]["ports"][0]["port"], port["containerPort"]);
    let volume_of =
        |name: &str| spec["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == name).unwrap();
    assert_eq!(volume_of("config")["configMap"]["name"], only(&installed, "config.yaml")["metadata"]["name"]);
}

#[test]
fn pod_has_time_for_the_drain_and_for_the_stop() {
    let Some(installed) = InstalledClients::open() else { return };
    let pod = pod(&installed);
    let text = only(&installed, "config.yaml")["data"]["config.toml"].as_str().unwrap().to_owned();
    let table: toml::Table = toml::from_str(&text).unwrap();
    let seconds = |text: &str| text.strip_suffix('s').unwrap().parse::<u64>().unwrap();
    let setting = |key: &str| seconds(table["server"][key].as_str().unwrap());
    let command = &pod["spec"]["containers"][0]["lifecycle"]["preStop"]["exec"]["command"];
    let drain = seconds(command.as_array().unwrap().last().unwrap().as_str().unwrap());
    // The default of `timeouts.total`.
    let longest_delivery = 120;
    assert!(drain >= setting("drain_grace") + longest_delivery);
    let stop = pod["spec"]["terminationGracePeriodSeconds"].as_u64().unwrap();
    assert!(stop > drain + setting("drain_timeout"), "{stop}");
}

#[test]
fn list_for_customers_has_the_ranges_of_a_node() {
    let list = |file: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
        let output = command.args(["egress", "list", "--config"]).arg(path(file)).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect::<Vec<ipnet::IpNet>>()
    };
    let (all, node) = (list("kubernetes/ranges.toml"), list("kubernetes/egress.toml"));
    assert!(!node.is_empty() && all != node, "{node:?}");
    assert!(node.iter().all(|range| all.iter().any(|listed| listed.contains(range))), "{node:?} in {all:?}");
}

/// Writes a ConfigMap as the kubelet does: a folder for each version, and one link that changes.
fn mount_config(folder: &Folder, version: &str, text: &Config) {
    std::fs::create_dir(folder.path(version)).unwrap();
    folder.write_config(&format!("{version}/config.toml"), text);
    symlink(version, folder.path("..data.new")).unwrap();
    std::fs::rename(folder.path("..data.new"), folder.path("..data")).unwrap();
    if !folder.path("config.toml").exists() {
        symlink("..data/config.toml", folder.path("config.toml")).unwrap();
    }
}

#[test]
fn outgate_runs_with_the_configuration_the_probes_and_the_commands_of_the_manifests() {
    let Some(installed) = InstalledClients::open() else { return };
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&[HOST]), ok());
    let folder = folder_with(&pki);
    new_key(&folder, "platform-2026-11.pem");
    let pod = pod(&installed);
    let container = &pod["spec"]["containers"][0];
    let text = only(&installed, "config.yaml")["data"]["config.toml"].as_str().unwrap().to_owned();
    // The paths of the pod become those of the test.
    let placed = |text: &str| text.replace_all("/run/outgate/", "{dir}/");
    let text = placed(&text).replace_all("/run/secrets/outgate/", "{dir}/").replace_all("/var/lib/outgate/", "{dir}/");
    let text = Config::parse(&text.replace_all("/etc/outgate-node/", "{dir}/"));
    let node = config("kubernetes/egress.toml");
    folder.write_config("egress.toml", &node);
    mount_config(&folder, "..1", &text);
    assert_eq!(checked(&folder, "config.toml"), ["not_public"], "addresses of documentation");
    folder.write_config("egress.toml", &node.set("egress.default.ranges", ["127.0.7.16/29"]));

    let text = text
        .set("server.listen", ["127.0.0.1:0"])
        .set("admin.listen", ["127.0.0.1:0", "unix:{dir}/admin.sock"])
        .set("clients.billing.tokens", [token_hash("TOKEN")])
        .set("clients.billing.networks", ["127.0.0.0/8"])
        .and(&receiver_on_this_host(&receiver, HOST))
        .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
    mount_config(&folder, "..2", &text);
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    for argument in container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()) {
        match argument.strip_prefix("/etc/outgate/") {
            Some(file) => command.arg(folder.path(file)),
            None => command.arg(argument),
        };
    }
    let outgate = Outgate::start(command, folder);
    let post = || {
        let fields = "Proxy-Authorization: Bearer TOKEN\r\n";
        outgate.post(&format!("https://{HOST}:{}/in", receiver.port()), fields, "{}")
    };
    assert_eq!(post().status, 200);
    verify_with_public_key(&receiver.requests()[0], &outgate.folder);
    assert!(receiver.requests()[0].from.to_string().starts_with("127.0.7."));

    // The kubelet writes a change of the ConfigMap without a restart.
    let changed = text.and("[limits.none]\nrate = \"1/h\"\nburst = 1\n").add("routes.customers.limits", ["none"]);
    outgate.after_reload(|| mount_config(&outgate.folder, "..3", &changed));
    assert_eq!((post().status, post().code()), (200, "rate_limited"));

    let probe = |name: &str| {
        let probe = &container[name]["httpGet"];
        assert_eq!((&probe["host"], &probe["port"]), (&json!("127.0.0.1"), &json!(4751)), "the admin listener");
        outgate.admin(probe["path"].as_str().unwrap()).status
    };
    for name in ["startupProbe", "livenessProbe", "readinessProbe"] {
        assert_eq!(probe(name), 200, "{name}");
    }
    let stop = container["lifecycle"]["preStop"]["exec"]["command"].as_array().unwrap();
    let words: Vec<&str> = stop.iter().map(|word| word.as_str().unwrap()).collect();
    assert_eq!(words[0], "/usr/bin/outgate");
    let mut command = Command::new(env!("CARGO_BIN_EXE_outgate"));
    let socket = format!("unix:{}", outgate.folder.path("admin.sock").display());
    command.args(words[1..].iter().map(|word| if word.starts_with("unix:") { socket.as_str() } else { word }));
    std::thread::scope(|scope| {
        let stop = scope.spawn(move || command.args(["--grace", "1s"]).output().unwrap());
        eventually("the pod is not ready", || probe("readinessProbe") == 503);
        assert_eq!(probe("livenessProbe"), 200, "the kubelet must not kill a pod that drains");
        let output = stop.join().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
    assert_eq!(post().code(), "draining");
}
