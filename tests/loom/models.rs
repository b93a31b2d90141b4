//! Models of what several threads do with the atomic counters of `src/state/counters.rs`. loom runs each of them in every order
//! of the threads' steps, and with older values for relaxed loads.
//! Does a counter keep its promise in all of them?
//!
//! This is a package of its own, which includes the source file and gives it the atomics of loom: tokio cannot be built with
//! them, and so the product cannot be either.
#![cfg(test)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use loom::sync::atomic::{self, AtomicBool, Ordering};
use loom::sync::{Arc, Mutex};
use loom::thread;

#[path = "../../src/state/counters.rs"]
#[allow(dead_code, reason = "a model does not use every function")]
mod counters;

use counters::{PeriodCounter, TableSize};

/// A table behind two locks, with its size as the circuit breakers keep it.
#[derive(Default)]
struct Table {
    shards: [Mutex<Vec<usize>>; 2],
    size: TableSize,
}

impl Table {
    fn add(&self, entry: usize) {
        let mut shard = self.shards[entry % 2].lock().unwrap();
        shard.push(entry);
        self.size.increment();
    }

    fn remove(&self, entry: usize) {
        let mut shard = self.shards[entry % 2].lock().unwrap();
        if shard.pop().is_some() {
            self.size.decrement();
        }
    }
}

#[test]
fn table_size_is_not_zero_for_a_thread_that_knows_of_an_entry() {
    loom::model(|| {
        let (table, is_added) = (Arc::new(Table::default()), Arc::new(AtomicBool::new(false)));
        let adder = thread::spawn({
            let (table, is_added) = (Arc::clone(&table), Arc::clone(&is_added));
            move || {
                table.add(1);
                is_added.store(true, Ordering::Release);
            }
        });
        let other = thread::spawn({
            let table = Arc::clone(&table);
            move || {
                table.add(2);
                table.remove(2);
            }
        });
        if is_added.load(Ordering::Acquire) {
            assert!(!table.size.is_zero());
        }
        adder.join().unwrap();
        other.join().unwrap();
        assert_eq!(table.size.get(), 1);
    });
}

#[test]
fn table_size_that_is_set_under_the_lock_is_the_size_of_the_table() {
    loom::model(|| {
        let table = Arc::new((Mutex::new(Vec::new()), TableSize::default()));
        let change = |changed: fn(&mut Vec<u32>)| {
            let table = Arc::clone(&table);
            thread::spawn(move || {
                let mut entries = table.0.lock().unwrap();
                changed(&mut entries);
                table.1.set(entries.len());
            })
        };
        let changes = [change(|entries| entries.push(1)), change(Vec::clear)];
        changes.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(table.1.get(), table.0.lock().unwrap().len());
    });
}

#[test]
fn period_counter_loses_no_count_and_stops_at_its_maximum() {
    for max in [1, 2, 10] {
        loom::model(move || {
            let counter = Arc::new(PeriodCounter::default());
            let add = || {
                let counter = Arc::clone(&counter);
                thread::spawn(move || counter.increment(7, max))
            };
            let added = [add(), add()].map(|thread| u64::from(thread.join().unwrap()));
            let expected = u64::from(max).min(2);
            assert_eq!((added.iter().sum::<u64>(), counter.read(7)), (expected, expected));
        });
    }
}

/// Reads of the period before and of the next one, while threads count in both. The one of the period before may be late.
#[test]
fn period_counter_counts_the_next_period_once_it_has_begun() {
    loom::model(|| {
        let counter = Arc::new(PeriodCounter::default());
        counter.increment(7, u32::MAX);
        let add = |period| {
            let counter = Arc::clone(&counter);
            thread::spawn(move || counter.increment(period, u32::MAX))
        };
        let threads = [add(7), add(8)];
        assert!(counter.read(7) <= 2 && counter.read(8) <= 2);
        threads.into_iter().for_each(|thread| assert!(thread.join().unwrap()));
        assert!(matches!((counter.read(7), counter.read(8)), (0, 1 | 2)), "the last of the two periods");
    });
}

#[test]
fn period_counter_stays_at_its_maximum_when_a_thread_is_late() {
    loom::model(|| {
        let counter = Arc::new(PeriodCounter::default());
        assert!(counter.increment(7, 1));
        let add = |period| {
            let counter = Arc::clone(&counter);
            thread::spawn(move || counter.increment(period, 1))
        };
        let added = [add(8), add(7), add(8)].map(|thread| u64::from(thread.join().unwrap()));
        assert_eq!((added.iter().sum::<u64>(), counter.read(8)), (1, 1));
    });
}
