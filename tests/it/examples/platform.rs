//! `examples/platform`: tenants with keys of their own, and a file for each team.
//! Is a webhook signed with the key of its tenant, and with no other?

use std::path::Path;
use std::process::Command;

use super::{checked, config, folder_with, has, path, receiver_on_this_host};
use crate::support::configuration::token_hash;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::signature::verifies;
use crate::support::{Folder, Outgate};

const FILES: [&str; 3] = ["conf.d/clients.toml", "conf.d/customers.toml", "conf.d/limits.toml"];
const HOST: &str = "hooks.acme.example";

/// Runs the script of the example, which gives a tenant a key.
fn add_tenant(folder: &Folder, tenant: &str) {
    let mut script = Command::new("sh");
    script.arg(path("platform/new-tenant.sh")).arg(tenant).arg(folder.path("keys/tenants"));
    let binary = Path::new(env!("CARGO_BIN_EXE_outgate")).parent().unwrap();
    let programs = std::env::var_os("PATH").unwrap_or_default();
    let programs = std::env::join_paths(std::iter::once(binary.to_owned()).chain(std::env::split_paths(&programs)));
    let output = script.env("PATH", programs.unwrap()).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

/// Returns the only key of a tenant.
fn key_of(folder: &Folder, tenant: &str) -> String {
    let files = std::fs::read_dir(folder.path("keys/tenants").join(tenant)).unwrap();
    let [file] = files.map(|file| file.unwrap().path()).collect::<Vec<_>>().try_into().unwrap();
    std::fs::read_to_string(file).unwrap().trim().to_owned()
}

#[test]
fn platform_signs_with_the_key_of_each_tenant_alone() {
    if !has("sh", "-c") {
        return;
    }
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&[HOST]), ok());
    let folder = folder_with(&pki);
    std::fs::create_dir_all(folder.path("conf.d")).unwrap();
    std::fs::create_dir_all(folder.path("keys/tenants")).unwrap();
    add_tenant(&folder, "acme");
    let files = FILES.map(|file| (file, config(&format!("platform/{file}"))));
    for (file, text) in &files {
        let text = match *file {
            "conf.d/customers.toml" => &text.set("signers.platform.key_dir", "{dir}/keys/tenants"),
            _ => text,
        };
        folder.write_config(file, text);
    }
    let text = config("platform/config.toml").set("audit.file", "{dir}/audit.jsonl");
    folder.write_config("config.toml", &text);
    assert_eq!(checked(&folder, "config.toml"), ["not_public", "not_public"], "addresses of documentation");

    let (_, clients) = &files[0];
    let clients = clients.set("clients.events.tokens", [token_hash("TOKEN")]);
    folder.write_config("conf.d/clients.toml", &clients.set("clients.events.networks", ["127.0.0.0/8"]));
    let text = text
        .set("server.listen", ["127.0.0.1:0"])
        .set("admin.listen", ["127.0.0.1:0"])
        .set("egress.default.ranges", ["127.0.7.16/28"])
        .and(&receiver_on_this_host(&receiver, HOST))
        .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
    let outgate = Outgate::run(folder, &text);
    let post = |tenant: &str| {
        let fields = format!("Proxy-Authorization: Bearer TOKEN\r\nOutgate-Tenant: {tenant}\r\n");
        outgate.post(&format!("https://{HOST}:{}/in", receiver.port()), &fields, "{}")
    };
    assert_eq!(post("acme").status, 200);
    let refused = post("globex");
    assert_eq!((refused.status, refused.code()), (403, "client_forbidden"), "{refused:?}");
    outgate.after_reload(|| add_tenant(&outgate.folder, "globex"));
    assert_eq!(post("globex").status, 200);

    let (received, keys) = (receiver.requests(), ["acme", "globex"].map(|tenant| key_of(&outgate.folder, tenant)));
    assert_eq!(received.len(), 2, "{received:?}");
    for (index, request) in received.iter().enumerate() {
        let verified = keys.each_ref().map(|key| verifies(request, key));
        assert_eq!(verified, [index == 0, index == 1], "{request:?}");
        assert!(request.from.to_string().starts_with("127.0.7."), "{request:?}");
    }
    let record = outgate.records(3).pop().unwrap();
    assert_eq!((&record["client"], &record["tenant"]), (&"events".into(), &"globex".into()), "{record}");
}
