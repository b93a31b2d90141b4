//! The memory of finished messages, which a thread keeps for its next ones.
//! Which messages need no memory of the allocator?
//!
//! A connection that waits for a message holds no memory for it. It would free and allocate the same few buffers for each
//! message. Deliveries of one thread pass them on here instead.

use std::cell::RefCell;
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::thread::LocalKey;

use bytes::BytesMut;

/// The number of buffers of one kind that a thread keeps, and the largest capacity of one, in bytes.
const SPARES_MAX: usize = 64;
const CAPACITY_MAX: usize = 4 * 1024;

/// The capacity of a new buffer for a head, in bytes.
const HEAD_LEN: usize = 1024;

/// Values of one kind that the thread keeps.
pub(super) struct Spares<T>(RefCell<Vec<T>>);

impl<T> Spares<T> {
    pub(super) const fn new() -> Self {
        Self(RefCell::new(Vec::new()))
    }
}

/// Takes a value that this thread has kept.
pub(super) fn take<T>(spares: &'static LocalKey<Spares<T>>) -> Option<T> {
    spares.try_with(|spares| spares.0.try_borrow_mut().ok()?.pop()).ok().flatten()
}

/// Keeps the value for this thread, unless the thread has enough of them or ends.
pub(super) fn keep<T>(spares: &'static LocalKey<Spares<T>>, value: T) {
    let _ = spares.try_with(|spares| {
        if let Ok(mut spares) = spares.0.try_borrow_mut()
            && spares.len() < SPARES_MAX
        {
            spares.push(value);
        }
    });
}

thread_local! {
    static HEADS: Spares<Vec<u8>> = const { Spares::new() };
    static READ_BUFFERS: Spares<BytesMut> = const { Spares::new() };
}

/// A buffer for the head of a message. Dropping it keeps its memory for another.
#[derive(Default)]
pub struct HeadBuffer(Vec<u8>);

impl HeadBuffer {
    /// Returns an empty buffer with the memory of an earlier one, or else with new memory.
    pub fn take() -> Self {
        Self(take(&HEADS).unwrap_or_else(|| Vec::with_capacity(HEAD_LEN)))
    }
}

impl Drop for HeadBuffer {
    fn drop(&mut self) {
        if (HEAD_LEN..=CAPACITY_MAX).contains(&self.0.capacity()) {
            self.0.clear();
            keep(&HEADS, std::mem::take(&mut self.0));
        }
    }
}

impl Clone for HeadBuffer {
    fn clone(&self) -> Self {
        let mut clone = Self::take();
        clone.extend_from_slice(self);
        clone
    }
}

impl Deref for HeadBuffer {
    type Target = Vec<u8>;
    fn deref(&self) -> &Vec<u8> {
        &self.0
    }
}

impl DerefMut for HeadBuffer {
    fn deref_mut(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }
}

impl fmt::Debug for HeadBuffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(&self.0), f)
    }
}

/// Returns an empty buffer for bytes that are read. `min`: the least capacity that will do; `length`: that of a new buffer.
pub fn take_read_buffer(min: usize, length: usize) -> BytesMut {
    let spare = if min <= CAPACITY_MAX { take(&READ_BUFFERS) } else { None };
    if let Some(mut spare) = spare {
        // All of its memory, or the rest if a part of the last message is still in use.
        if (spare.try_reclaim(CAPACITY_MAX) || spare.try_reclaim(min)) && spare.capacity() <= CAPACITY_MAX {
            return spare;
        }
    }
    BytesMut::with_capacity(length)
}

/// Keeps the memory of a buffer whose bytes are all taken, unless it is seen to be large. Parts of it may still be in use, and
/// then hide its size until it is taken.
pub fn keep_read_buffer(mut buffer: BytesMut) {
    // The capacity is what follows the bytes that were taken: a buffer with more memory in all is larger than it seems.
    let is_large = |buffer: &mut BytesMut| buffer.capacity() > CAPACITY_MAX || buffer.try_reclaim(CAPACITY_MAX + 1);
    // It may have no memory at all.
    if buffer.capacity() > 0 && !is_large(&mut buffer) {
        keep(&READ_BUFFERS, buffer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_buffer_gets_the_memory_of_the_last_one_and_none_of_its_bytes() {
        let mut first = HeadBuffer::take();
        first.extend_from_slice(b"secret");
        let memory = first.as_ptr();
        drop(first);
        let second = HeadBuffer::take();
        assert_eq!((second.as_ptr(), second.len()), (memory, 0));
        assert_ne!(HeadBuffer::take().as_ptr(), memory);
    }

    #[test]
    fn large_head_buffer_is_not_kept() {
        let mut large = HeadBuffer::take();
        large.reserve(2 * CAPACITY_MAX);
        drop(large);
        assert!(HeadBuffer::take().capacity() <= CAPACITY_MAX);
    }

    #[test]
    fn read_buffer_is_not_shared_with_bytes_that_are_in_use() {
        let mut buffer = take_read_buffer(1024, 2048);
        buffer.extend_from_slice(&[7; 100]);
        let body = buffer.split_to(100).freeze();
        keep_read_buffer(buffer);
        let mut next = take_read_buffer(1024, 2048);
        next.extend_from_slice(&[8; 1024]);
        assert_eq!(body[..], [7; 100]);
        drop(body);
        next.clear();
        keep_read_buffer(next);
        assert_eq!(
            take_read_buffer(2000, 1).capacity(),
            2048,
            "all memory of a buffer that no part uses is taken again"
        );
    }

    #[test]
    fn large_read_buffer_is_not_kept() {
        let kept = || READ_BUFFERS.with(|buffers| buffers.0.borrow().len());
        READ_BUFFERS.with(|buffers| buffers.0.borrow_mut().clear());
        for taken in [0, 2 * CAPACITY_MAX] {
            let mut large = BytesMut::with_capacity(3 * CAPACITY_MAX);
            large.resize(taken, 7);
            drop(large.split_to(taken));
            keep_read_buffer(large);
            assert_eq!(kept(), 0, "{taken} bytes of it were taken");
        }
        keep_read_buffer(BytesMut::with_capacity(CAPACITY_MAX));
        assert_eq!(kept(), 1);
    }

    #[test]
    fn thread_keeps_a_bounded_number_of_buffers() {
        let buffers: Vec<_> = (0..2 * SPARES_MAX).map(|_| HeadBuffer::take()).collect();
        drop(buffers);
        assert_eq!(HEADS.with(|heads| heads.0.borrow().len()), SPARES_MAX);
    }
}
