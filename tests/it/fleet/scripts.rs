//! The bounds on what the scripts keep and return, with values in a real store that no instance has written.
//! How much can an intruder who writes to the store make an instance read?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::collections::BTreeMap;

use crate::support::store::{self, StoreServer};

const FOLDER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/net/store");

/// Runs a script of outgate, and returns the lines that it returns.
fn eval(server: &StoreServer, script: &str, keys: &[&str], arguments: &[&str]) -> Vec<String> {
    let script = format!("{FOLDER}/{script}");
    let mut command = vec!["--raw", "--eval", &script];
    command.extend(keys);
    command.push(",");
    command.extend(arguments);
    server.cli(&command).lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
}

/// Changes the store as an intruder could.
fn intrude(server: &StoreServer, lua: &str) {
    let answer = server.cli(&["eval", lua, "0"]);
    assert!(!answer.contains("ERR"), "{answer}");
}

#[test]
fn fleet_script_of_live_instances_returns_few_short_names_of_a_hostile_store() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let live = || eval(&server, "live_instances.lua", &["live", "rows"], &[]);
    let announce = |process: &str, ends: &str, row: &str| {
        server.cli(&["zadd", "live", ends, process]);
        server.cli(&["hset", "rows", process, row]);
    };
    announce("1", "+inf", r#"{"instance":"egress-1"}"#);
    announce("ended", "1", r#"{"instance":"egress-2"}"#);
    for (number, row) in ["", "x", "7", "[]", "{}", r#"{"instance":7}"#, r#"{"instance":{"a":"b"}}"#].iter().enumerate()
    {
        announce(&format!("wrong-{number}"), "+inf", row);
    }
    announce("nested", "+inf", &format!("{}1{}", "[".repeat(5000), "]".repeat(5000)));
    server.cli(&["zadd", "live", "+inf", "without-row"]);
    assert_eq!(live(), ["egress-1"]);
    let with_name = |length: usize, more: usize| {
        intrude(
            &server,
            &format!(
                "redis.call('hset', 'rows', '1', '{{\"instance\":\"' .. ('n'):rep({length}) .. '\",\"x\":\"' .. \
                 ('x'):rep({more}) .. '\"}}')"
            ),
        );
        live().concat().len()
    };
    assert_eq!(with_name(1024, 0), 1024);
    assert_eq!(with_name(1025, 0), 0, "a name that is too long");
    let around = r#"{"instance":"n","x":""}"#.len();
    assert_eq!(with_name(1, (256 << 10) - around), 1);
    assert_eq!(with_name(1, (256 << 10) - around + 1), 0, "an announcement that is too long");
    intrude(
        &server,
        "for i = 1, 5000 do redis.call('zadd', 'live', '+inf', 'p' .. i)
         redis.call('hset', 'rows', 'p' .. i, '{\"instance\":\"i' .. i .. '\"}') end",
    );
    let count = live().len();
    assert!((4000..=4096).contains(&count), "{count}: some of the 4,096 processes have no name");
}

#[test]
fn fleet_script_of_announcements_remembers_ended_instances_within_bounds() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let keys = ["live", "rows", "state", "lost", "last"];
    let announce = |name: &str| {
        let row = format!("{{\"instance\":\"{name}\"}}");
        eval(&server, "announce.lua", &keys, &["own", "5000", &row, "3000", name])[0].clone()
    };
    let lost = || {
        let names = server.cli(&["--raw", "zrange", "lost", "0", "-1"]);
        names.split_terminator('\n').filter(|name| !name.is_empty()).map(str::to_owned).collect::<Vec<_>>()
    };
    for (process, ends, row) in [
        ("a", "5", r#"{"instance":"egress-2","x":"older"}"#),
        ("b", "6", r#"{"instance":"egress-2","x":"newer"}"#),
        ("c", "7", r#"{"instance":"egress-1"}"#),
        ("d", "8", "x"),
        ("e", "8", r#"{"instance":7}"#),
        ("f", "8", r#"{"instance":""}"#),
        ("g", "8", &format!(r#"{{"instance":"{}"}}"#, "n".repeat(1025))),
        ("h", "8", &format!(r#"{{"instance":"long","x":"{}"}}"#, "x".repeat(1000))),
    ] {
        server.cli(&["zadd", "live", ends, process]);
        server.cli(&["hset", "rows", process, row]);
    }
    intrude(
        &server,
        "redis.call('hset', 'rows', 'h', '{\"instance\":\"long\",\"x\":\"' .. ('x'):rep(262144) .. '\"}')",
    );
    server.cli(&["zadd", "live", "9", "without-row"]);
    assert_eq!(announce("egress-1"), "1");
    assert_eq!(lost(), ["egress-2"], "the own instance is live, and forged rows are forgotten");
    assert!(server.cli(&["hget", "last", "egress-2"]).contains("newer"));
    assert_eq!(server.cli(&["--raw", "hkeys", "rows"]).trim(), "own");
    announce("egress-2");
    assert_eq!((lost().len(), server.cli(&["--raw", "hlen", "last"]).trim()), (0, "0"), "it has returned");

    // Ended processes never count as live, also if one call does not move all of them.
    intrude(
        &server,
        "for i = 1, 5000 do redis.call('zadd', 'live', i, 'p' .. i)
         redis.call('hset', 'rows', 'p' .. i, '{\"instance\":\"i' .. i .. '\"}') end",
    );
    assert_eq!(announce("egress-1"), "1");
    assert_eq!(lost().len(), 64);
    // The longest gone are forgotten first.
    intrude(
        &server,
        "for i = 1, 5000 do redis.call('zadd', 'lost', i, 'l' .. i) redis.call('hset', 'last', 'l' .. i, 'x') end",
    );
    (0..2).for_each(|_| drop(announce("egress-1")));
    assert_eq!((lost().len(), lost().last().map(String::as_str)), (4096, Some("l5000")));
    let read = eval(&server, "read_announcements.lua", &["live", "rows", "lost", "last"], &[]);
    assert_eq!(
        read.iter().filter(|line| line.starts_with('l')).count(),
        4096 - lost().iter().filter(|name| name.starts_with('i')).count()
    );
}

#[test]
fn fleet_script_of_rollout_reports_returns_few_short_facts_of_a_hostile_store() {
    if !store::is_installed() {
        return;
    }
    let server = StoreServer::start();
    let report = |arguments: &[&str]| -> BTreeMap<String, String> {
        let found = eval(&server, "report_rollout.lua", &["rollout"], arguments);
        assert_eq!(found.len() % 2, 0);
        found.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect()
    };
    let all = || report(&["", ""]);
    intrude(&server, "redis.call('hset', 'rollout', 'digest', 'd', 'version', '1')");
    // Facts belong to the rollout of their digest, and the first failure stays.
    report(&["1", "other", "report:a", "1"]);
    report(&["1", "d", "report:b", "2", "failure", "first"]);
    report(&["1", "d", "failure", "second"]);
    let found = all();
    assert_eq!((found.get("report:a"), found["report:b"].as_str(), found["failure"].as_str()), (None, "2", "first"));
    intrude(&server, "redis.call('hset', 'rollout', 'failure', ('v'):rep(65537))");
    report(&["1", "d", "failure", "third"]);
    assert_eq!(all()["failure"], "third", "a failure that no instance reads is none");
    for (name, value, is_returned) in [(1024, 65536, true), (1024, 65537, false), (1025, 1, false)] {
        let set = format!("redis.call('hset', 'rollout', ('n'):rep({name}), ('v'):rep({value}))");
        intrude(&server, &set);
        let found = all().get(&"n".repeat(name)).map(String::len);
        assert_eq!(found, is_returned.then_some(value), "{name} {value}");
        intrude(&server, &format!("redis.call('hdel', 'rollout', ('n'):rep({name}))"));
    }
    // A document has a bound of its own, and goes to a caller that has seen nothing.
    for (length, is_returned) in [(4 << 20, true), ((4 << 20) + 1, false)] {
        intrude(&server, &format!("redis.call('hset', 'rollout', 'document', ('x'):rep({length}))"));
        assert_eq!(all().get("document").map(String::len), is_returned.then_some(length), "{length}");
        assert_eq!(report(&["0", "d"]).get("document"), None);
    }
    intrude(&server, "for i = 1, 9000 do redis.call('hset', 'rollout', 'f' .. i, 'v') end");
    assert_eq!(all().len(), 8192);
    intrude(&server, "for i = 1, 1000 do redis.call('hset', 'rollout', 'f' .. i, ('v'):rep(65536)) end");
    let bytes: usize = all().iter().map(|(name, value)| name.len() + value.len()).sum();
    assert!((16 << 20..=32 << 20).contains(&bytes), "{bytes}");
}
