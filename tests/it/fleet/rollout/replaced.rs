//! Rollouts that another one replaces, or that the store loses.
//! Does an operator learn of it, and does no instance begin the next rollout with the bundle of one that has failed?

use std::io::{BufRead, BufReader};

use jiff::SignedDuration;
use outgate::policy::rollout::bundle::digest;

use super::{Fleet, GUARD};
use crate::support::control::exit_code_and_output;
use crate::support::{eventually, store};

#[test]
fn rollout_that_is_followed_and_lost_or_replaced_ends_the_command() {
    if !store::is_installed() {
        return;
    }
    let fleet = Fleet::start(1);
    let cli = |words: &[&str]| fleet.store.nodes[0].cli(words);
    for number in [1, 2] {
        let mut watch = fleet.watch(GUARD, &["--pause", "1s"]);
        let mut line = String::new();
        let mut shown = BufReader::new(watch.stdout.take().unwrap());
        shown.read_line(&mut line).unwrap();
        assert!(line.starts_with(&format!("rollout {number} of alice")), "{line}");
        if number == 1 {
            cli(&["del", "outgate:{rollout}"]);
        } else {
            let (document, signature) = fleet.signed(3, SignedDuration::ZERO, &["egress-z", "egress-a"]);
            fleet.forge(&[("document", &document), ("digest", &digest(&document)), ("signature", &signature)]);
        }
        eventually("the command ends", || watch.try_wait().unwrap().is_some());
        let (code, _, err) = exit_code_and_output(&watch.wait_with_output().unwrap());
        assert!(code == 1 && err.contains(&format!("the fleet has rollout {number} no longer")), "{code} {err}");
    }
}
