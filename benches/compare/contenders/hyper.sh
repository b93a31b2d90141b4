# The bare relay of hyper: `benches/compare/relay.rs`.
# shellcheck shell=bash disable=SC2034,SC2154
supports="plain tls tls-new tls-tickets tunnel bulk rate idle-clients idle-tunnels"
version() { sed -n '/^name = "hyper"$/{n;s/version = "\(.*\)"/\1/p}' "$root/Cargo.lock"; }
start() { exec "$compare" relay --listen 127.0.0.1:3128 --source "$source" --root "$authority/ca.pem"; }
