//! The law of every request: it is answered, refused or abandoned, and counted once.
//! Do the client, the delivery log and the metrics count the same?

use std::collections::BTreeMap;

use super::scrape::Scrape;
use super::{Outgate, eventually};

/// How many requests ended with each code. `delivered`: answered. `client_gone`: abandoned. Others: refused.
pub type Counts = BTreeMap<String, u64>;

/// Counts requests that were all delivered.
pub fn delivered(count: usize) -> Counts {
    Counts::from([("delivered".to_owned(), count as u64)])
}

/// Asserts that the client, the delivery log and the metrics of one process count the same.
pub fn assert_law(outgate: &Outgate, sent: &Counts) {
    assert_law_across(&[], outgate, sent);
}

/// Asserts the law where processes have taken over from each other. The metrics of those that ended are gone.
pub fn assert_law_across(ended: &[&Outgate], running: &Outgate, sent: &Counts) {
    let metrics = || counted(running);
    let log = || ended.iter().chain([&running]).fold(Counts::new(), |counts, outgate| add(counts, logged(outgate)));
    // The log is written after the response.
    let (mut last, mut missing) = (Counts::new(), [0, 0]);
    eventually("the log has what the client counted", || {
        let scrape = Scrape::of(running);
        let count = |name: &str| scrape.sum(&format!("outgate_records_{name}_total"), &[]) as u64;
        (last, missing) = (log(), ["sampled_out", "lost"].map(count));
        total(&last) + missing.iter().sum::<u64>() >= total(sent)
    });
    let [sampled_out, lost] = missing;
    // Only successes are sampled. A lost record may be that of any delivery.
    let is_subset = last.keys().all(|code| sent.contains_key(code));
    let has_all = sent.iter().all(|(code, count)| {
        let left_out = lost + if code == "delivered" { sampled_out } else { 0 };
        (count.saturating_sub(left_out)..=*count).contains(last.get(code).unwrap_or(&0))
    });
    let is_whole = total(&last) + sampled_out + lost == total(sent);
    assert!(is_subset && has_all && is_whole, "sent {sent:?}, logged {last:?}, sampled out {sampled_out}, lost {lost}");
    let others = ended.iter().fold(Counts::new(), |counts, outgate| add(counts, logged(outgate)));
    let expected = |mut counts: Counts| {
        others.iter().for_each(|(code, count)| *counts.entry(code.clone()).or_default() -= count);
        counts.retain(|_, count| *count > 0);
        counts
    };
    let expected = expected(sent.clone());
    eventually("the metrics count what the client counted", || metrics() == expected);
}

/// Counts the records of the delivery log so far.
fn logged(outgate: &Outgate) -> Counts {
    let records = outgate.records(0);
    // A record of lost records is no delivery.
    let codes = records.iter().filter_map(|record| record["code"].as_str());
    codes.fold(Counts::new(), |counts, code| add(counts, Counts::from([(code.to_owned(), 1)])))
}

/// Returns the deliveries that the metrics count.
fn counted(outgate: &Outgate) -> Counts {
    let scrape = Scrape::of(outgate);
    let samples = scrape.with("outgate_deliveries_total", &[]).filter(|sample| sample.value > 0.0);
    samples.fold(Counts::new(), |counts, sample| {
        add(counts, Counts::from([(sample.labels["code"].clone(), sample.value as u64)]))
    })
}

fn add(mut counts: Counts, more: Counts) -> Counts {
    more.into_iter().for_each(|(code, count)| *counts.entry(code).or_default() += count);
    counts
}

fn total(counts: &Counts) -> u64 {
    counts.values().sum()
}
