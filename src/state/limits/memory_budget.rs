//! A bound for the bytes that deliveries hold in memory, such as bodies and captures.
//! Is there memory for the next piece of a body?

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::policy::load::Usage;

/// The part of the process's memory that bodies may take: one in this number. A body that grows is copied, and each
/// allocator keeps some memory, so that a body costs up to twice its length.
const BODIES_DIVISOR: u64 = 4;

/// The bytes that are still free, with a permit for each, and all bytes.
pub struct MemoryBudget {
    free: Arc<Semaphore>,
    max: usize,
}

/// Bytes of a budget, which count until the value is dropped.
pub struct MemoryReservation {
    budget: Arc<Semaphore>,
    /// `None`: no bytes.
    bytes: Option<OwnedSemaphorePermit>,
}

/// The bytes in memory have reached their maximum.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryFull;

impl MemoryBudget {
    pub fn new(bytes: usize) -> Self {
        let max = bytes.min(Semaphore::MAX_PERMITS);
        Self { free: Arc::new(Semaphore::new(max)), max }
    }

    /// Creates the budget of bodies from the memory that the process may use, in bytes.
    pub fn for_bodies(process_memory: u64) -> Self {
        Self::new(usize::try_from(process_memory / BODIES_DIVISOR).unwrap_or(usize::MAX))
    }

    /// Returns a reservation of no bytes.
    pub fn reservation(&self) -> MemoryReservation {
        MemoryReservation { budget: Arc::clone(&self.free), bytes: None }
    }

    pub fn usage(&self) -> Usage {
        Usage::new(self.max.saturating_sub(self.free.available_permits()), self.max)
    }
}

impl MemoryReservation {
    /// Reserves more bytes.
    pub fn grow(&mut self, bytes: usize) -> Result<(), MemoryFull> {
        let bytes = u32::try_from(bytes).map_err(|_| MemoryFull)?;
        let more = Arc::clone(&self.budget).try_acquire_many_owned(bytes).map_err(|_| MemoryFull)?;
        match &mut self.bytes {
            Some(held) => held.merge(more),
            None => self.bytes = Some(more),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_budget_is_shared_and_returned() {
        let memory = MemoryBudget::for_bodies(400);
        let (mut first, mut second) = (memory.reservation(), memory.reservation());
        assert_eq!(first.grow(60), Ok(()));
        assert_eq!(second.grow(41), Err(MemoryFull));
        assert_eq!(second.grow(40), Ok(()));
        assert_eq!(first.grow(1), Err(MemoryFull));
        assert_eq!(memory.usage(), Usage { used: 100, max: 100 });
        drop(first);
        assert_eq!(second.grow(60), Ok(()));
        drop(second);
        assert_eq!(memory.usage(), Usage { used: 0, max: 100 });
    }
}
