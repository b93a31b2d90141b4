//! Memory for secrets: never swapped, absent from core dumps and from forked processes.
//! Where do the bytes of a secret stand, and what becomes of them?
//!
//! The kernel locks whole pages, and a process may lock few of them (RLIMIT_MEMLOCK, 8 MiB by default). So the secrets of
//! thousands of tenants share pages: a chunk has slots of one size, and a freed slot serves the next secret.

#![expect(unsafe_code, reason = "mmap, mlock and madvise: no library in use offers locked memory")]

use std::collections::BTreeMap;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mlock, mmap_anonymous};
use zeroize::Zeroize;

/// The smallest slot in bytes. Most keys have 32 or 64 bytes.
const SLOT_MIN: usize = 32;
/// The bytes of a chunk whose slots are not larger. It has whole pages, and so have the powers of two above it.
const CHUNK_MIN: usize = 64 << 10;

/// The addresses of free slots, by their size. No other thread has a pointer to a slot in it.
static FREE_SLOTS: Mutex<BTreeMap<usize, Vec<usize>>> = Mutex::new(BTreeMap::new());
static UNLOCKED: AtomicUsize = AtomicUsize::new(0);

/// Bytes in locked memory. Dropping them wipes them.
pub(super) struct LockedBytes {
    slot: NonNull<u8>,
    len: usize,
}

// SAFETY: the bytes belong to this value alone, and only `drop` changes them after `new`.
unsafe impl Send for LockedBytes {}
// SAFETY: as above; a shared reference only reads.
unsafe impl Sync for LockedBytes {}

impl LockedBytes {
    /// Copies the bytes. Aborts if the kernel has no memory, as every allocation does.
    pub(super) fn new(bytes: &[u8]) -> Self {
        let slot = acquire_slot(slot_size(bytes.len()));
        // SAFETY: the slot is mapped, has at least `bytes.len()` bytes, and no other value has it.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), slot.as_ptr(), bytes.len()) };
        Self { slot, len: bytes.len() }
    }

    pub(super) fn as_slice(&self) -> &[u8] {
        // SAFETY: `new` has written `len` bytes to the slot, which is never unmapped.
        unsafe { std::slice::from_raw_parts(self.slot.as_ptr(), self.len) }
    }
}

impl Drop for LockedBytes {
    fn drop(&mut self) {
        // SAFETY: the slot has `len` bytes, and no reference to them exists any more.
        unsafe { std::slice::from_raw_parts_mut(self.slot.as_ptr(), self.len) }.zeroize();
        FREE_SLOTS.lock().entry(slot_size(self.len)).or_default().push(self.slot.as_ptr().expose_provenance());
    }
}

/// Returns the bytes of secrets' memory that the kernel refused to lock.
pub fn unlocked_secret_bytes() -> usize {
    UNLOCKED.load(Ordering::Relaxed)
}

fn slot_size(len: usize) -> usize {
    len.max(SLOT_MIN).next_power_of_two()
}

fn acquire_slot(size: usize) -> NonNull<u8> {
    let mut free_slots = FREE_SLOTS.lock();
    let slots = free_slots.entry(size).or_default();
    if slots.is_empty() {
        let chunk_size = size.max(CHUNK_MIN);
        let chunk = map_chunk(chunk_size).expose_provenance();
        slots.extend((chunk..chunk + chunk_size).step_by(size).rev());
    }
    let slot = slots.pop().and_then(|address| NonNull::new(ptr::with_exposed_provenance_mut(address)));
    slot.expect("a chunk has a slot, and its address is not zero")
}

/// Maps pages that hold secrets only. They are never unmapped: the number of secrets is bounded by the configuration.
fn map_chunk(size: usize) -> *mut u8 {
    // SAFETY: a new private mapping at an address of the kernel's choice touches no other memory.
    let mapped =
        unsafe { mmap_anonymous(ptr::null_mut(), size, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE) };
    let Ok(chunk) = mapped else {
        std::alloc::handle_alloc_error(std::alloc::Layout::from_size_align(size, 1).expect("a size of a secret"))
    };
    // SAFETY: the three calls concern the new mapping alone, and change none of its bytes in this process.
    let lock = || unsafe {
        // Kernels without an advice refuse it; the process has no core dumps and does not fork either.
        let _ = madvise(chunk, size, Advice::LinuxDontDump);
        let _ = madvise(chunk, size, Advice::LinuxWipeOnFork);
        mlock(chunk, size).is_ok()
    };
    let is_locked = !cfg!(miri) && lock(); // Miri knows neither call
    if !is_locked {
        UNLOCKED.fetch_add(size, Ordering::Relaxed);
    }
    chunk.cast()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the flags of the mapping that has this address (proc(5): VmFlags in /proc/pid/smaps).
    fn mapping_flags(address: usize) -> String {
        let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut is_inside = false;
        for line in text.lines() {
            let bounds = line.split(' ').next().and_then(|range| range.split_once('-'));
            let hex = |text| usize::from_str_radix(text, 16).ok();
            if let Some((Some(low), Some(high))) = bounds.map(|(low, high)| (hex(low), hex(high))) {
                is_inside = (low..high).contains(&address);
            }
            if let Some(flags) = line.strip_prefix("VmFlags:").filter(|_| is_inside) {
                return format!("{flags} ");
            }
        }
        panic!("{address:x} is mapped");
    }

    #[test]
    #[cfg_attr(miri, ignore = "Miri locks no memory")]
    fn locked_memory_is_locked_and_absent_from_core_dumps() {
        let secret = LockedBytes::new(b"one");
        let flags = mapping_flags(secret.slot.as_ptr().addr());
        assert!(flags.contains(" dd ") && flags.contains(" wf "), "no dump, wiped on fork: {flags}");
        assert!(flags.contains(" lo ") || unlocked_secret_bytes() > 0, "locked, or counted: {flags}");
    }

    #[test]
    fn locked_memory_keeps_each_secret_and_wipes_the_dropped() {
        let sizes = [0, 1, 31, 32, 33, 64, 4097, 70_000];
        let secrets: Vec<_> = (0..200).map(|at| vec![at as u8 + 1; sizes[at % sizes.len()]]).collect();
        let mut locked: Vec<_> = secrets.iter().map(|secret| LockedBytes::new(secret)).collect();
        for (locked, secret) in locked.iter().zip(&secrets) {
            assert_eq!(locked.as_slice(), secret);
        }
        let dropped = locked.swap_remove(199); // 70,000 bytes: no other test uses slots of this size
        let slot = dropped.slot;
        drop(dropped);
        // SAFETY: chunks stay mapped.
        assert!(unsafe { std::slice::from_raw_parts(slot.as_ptr(), 70_000) }.iter().all(|byte| *byte == 0));
        assert_eq!(LockedBytes::new(&[7; 70_000]).slot, slot, "the next secret gets the freed slot");
        assert_eq!(locked[7].as_slice(), secrets[7]);
    }
}
