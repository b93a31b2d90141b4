//! Miri runs the tests of a file with `unsafe` that does more than one system call: it checks each access to the memory, where
//! its pointer comes from, and that no two threads race.
//! Is each byte of a secret's memory used by its owner only?
//!
//! This is a package of its own, which includes the source file: Miri cannot run the C code of the product's dependencies.
#![cfg(test)]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

#[path = "../../src/config/locked_memory.rs"]
mod locked_memory;

use locked_memory::LockedBytes;

#[test]
fn secrets_are_read_by_several_threads_and_dropped_by_any() {
    let threads = (0..4_u8).map(|number| {
        let secret = std::sync::Arc::new(LockedBytes::new(&[number; 40]));
        let reader = std::sync::Arc::clone(&secret);
        let reading = std::thread::spawn(move || assert_eq!(reader.as_slice(), [number; 40]));
        drop(secret);
        reading
    });
    threads.for_each(|thread| thread.join().unwrap());
}
