//! `examples/load-balancer`: haproxy in TCP mode with PROXY protocol version 2.
//! Does outgate know the client's address, and does haproxy see a drain?

use std::net::TcpStream;
use std::process::{Command, Stdio};

use super::{checked, config, curl, folder_with, has, new_key, path, receiver_on_this_host, verify_with_public_key};
use crate::support::configuration::{Replace, token_hash};
use crate::support::pki::Pki;
use crate::support::process::Process;
use crate::support::receiver::{Receiver, ok};
use crate::support::{Outgate, eventually, ports};

const HOST: &str = "hooks.acme.example";

#[test]
fn record_behind_haproxy_has_the_address_of_the_client() {
    if !has("haproxy", "-v") || !has("curl", "--version") {
        return;
    }
    let pki = Pki::new();
    let receiver = Receiver::tls(pki.leaf(&[HOST]), ok());
    let folder = folder_with(&pki);
    new_key(&folder, "key.pem");
    let text = config("load-balancer/config.toml").set(
        "signers.platform.keys",
        [toml::toml! {
            id = "2026-11"
            secret = "file:{dir}/key.pem"
        }],
    );
    folder.write_config("config.toml", &text);
    assert_eq!(checked(&folder, "config.toml"), ["not_public"], "addresses of documentation");

    let text = text
        .set("server.listen", ["127.0.0.1:0"])
        .set("server.proxy_protocol.from", ["127.0.0.1"])
        .set("admin.listen", ["127.0.0.1:0", "unix:{dir}/admin.sock"])
        .set("egress.default.ranges", ["127.0.7.16/28"])
        .set("clients.billing.tokens", [token_hash("TOKEN")])
        .set("clients.billing.networks", ["127.0.2.0/24"])
        .and(&receiver_on_this_host(&receiver, HOST))
        .and("[trust.public]\nroots = [\"{dir}/ca.pem\"]\n");
    let outgate = Outgate::run(folder, &text);
    let (_reserved, balancer) = ports::reserved();
    let file = std::fs::read_to_string(path("load-balancer/haproxy.cfg")).unwrap();
    let file = file
        .replace_one("bind 10.0.0.2:4750", &format!("bind {balancer}"))
        .replace_one("check port 4751", &format!("check port {}", outgate.admin.port()))
        .replace_one("server egress-1 10.0.0.5:4750", &format!("server egress-1 {}", outgate.proxy))
        // The other host is down: outgate listens on no such address.
        .replace_one("server egress-2 10.0.0.6:4750", &format!("server egress-2 127.0.0.9:{}", outgate.proxy.port()));
    let file = outgate.folder.write("haproxy.cfg", file);
    let output = Command::new("haproxy").args(["-c", "-f"]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut command = Command::new("haproxy");
    let _haproxy = Process::start(command.args(["-db", "-f"]).arg(file).stderr(Stdio::null()));
    eventually("haproxy listens", || TcpStream::connect(balancer).is_ok());

    let proxy = |address: &dyn std::fmt::Display| format!("http://billing:TOKEN@{address}");
    let url = format!("http://{HOST}:{}/in", receiver.port());
    let send = |client: &str| curl(&["--interface", client, "--proxy", &proxy(&balancer), &url]);
    assert_eq!(send("127.0.2.9"), "ok\n200");
    let refused = send("127.0.3.9");
    assert!(refused.contains("client_forbidden"), "a client of another network: {refused}");
    let received = receiver.requests();
    assert_eq!(received.len(), 1, "{received:?}");
    verify_with_public_key(&received[0], &outgate.folder);
    let records = outgate.records(2);
    let (first, second) = (&records[0], &records[1]);
    assert_eq!((&first["client"], &first["peer"]), (&"billing".into(), &"127.0.2.9".into()), "{first}");
    assert_eq!((&second["code"], &second["peer"]), (&"client_forbidden".into(), &"127.0.3.9".into()), "{second}");
    // A client that goes past the load balancer has no header.
    let direct = curl(&["--interface", "127.0.2.9", "--proxy", &proxy(&outgate.proxy), &url]);
    assert!(direct.ends_with("(52) Empty reply from server\n") || direct.contains("reset by peer"), "{direct}");

    let mut drain = Command::new(env!("CARGO_BIN_EXE_outgate"));
    drain.arg("drain").arg("--admin").arg(format!("unix:{}", outgate.folder.path("admin.sock").display()));
    assert!(drain.output().unwrap().status.success());
    // In the grace time outgate still serves, but haproxy has no host left to send to.
    eventually("haproxy takes the host out of service", || send("127.0.2.9").contains("\n000"));
}
