//! The memory of the bodies that outgate holds whole, over all deliveries.
//! Is there memory for the next piece of a body?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The part of the process's memory that bodies may take: one in this number. A body that grows is copied, and each
/// allocator keeps some memory, so that a body costs up to twice its length.
const MEMORY_DIVISOR: u64 = 4;

/// The bytes of bodies in memory, and their maximum.
pub struct BodyMemory {
    held: AtomicUsize,
    max: usize,
}

/// The bytes of one body, which count until it is dropped.
pub struct BodyReservation {
    memory: Arc<BodyMemory>,
    bytes: usize,
}

/// The bodies in memory have reached their maximum.
#[derive(Debug, PartialEq, Eq)]
pub struct BodyMemoryFull;

impl BodyMemory {
    /// Creates the share of bodies in the memory that the process may use, in bytes.
    pub fn new(process_memory: u64) -> Self {
        let max = usize::try_from(process_memory / MEMORY_DIVISOR).unwrap_or(usize::MAX);
        Self { held: AtomicUsize::new(0), max }
    }

    /// Returns a reservation of no bytes.
    pub fn reservation(self: &Arc<Self>) -> BodyReservation {
        BodyReservation { memory: Arc::clone(self), bytes: 0 }
    }
}

impl BodyReservation {
    /// Reserves more bytes.
    pub fn grow(&mut self, bytes: usize) -> Result<(), BodyMemoryFull> {
        let held = &self.memory.held;
        if held.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) > self.memory.max {
            held.fetch_sub(bytes, Ordering::Relaxed);
            return Err(BodyMemoryFull);
        }
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for BodyReservation {
    fn drop(&mut self) {
        self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn body_memory_is_shared_and_returned() {
        let memory = Arc::new(BodyMemory::new(400));
        let (mut first, mut second) = (memory.reservation(), memory.reservation());
        assert_eq!(first.grow(60), Ok(()));
        assert_eq!(second.grow(41), Err(BodyMemoryFull));
        assert_eq!(second.grow(40), Ok(()));
        assert_eq!(first.grow(1), Err(BodyMemoryFull));
        drop(first);
        assert_eq!(second.grow(60), Ok(()));
        drop(second);
        assert_eq!(memory.held.load(Ordering::Relaxed), 0);
    }
}
