//! Locks of state that deliveries share. A panic while one is held ends the process.
//! Which state may a panic leave changed by half?

use std::cell::Cell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// A part of the code after whose panic shared state may be wrong: the process ends. It lasts until the value is dropped.
#[must_use]
pub struct CriticalSection(PhantomData<*const ()>);

impl CriticalSection {
    pub fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Self(PhantomData)
    }

    /// Returns whether this thread is in a critical section.
    pub(super) fn is_entered() -> bool {
        DEPTH.get() > 0
    }
}

impl Drop for CriticalSection {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get() - 1);
    }
}

/// A mutex that no panic leaves unlocked with a wrong value. It is not poisoned, because the process ends.
#[derive(Debug, Default)]
pub struct Mutex<T>(parking_lot::Mutex<T>);

/// The lock and its critical section, which end together.
pub struct MutexGuard<'a, T> {
    guard: parking_lot::MutexGuard<'a, T>,
    _section: CriticalSection,
}

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard { guard: self.0.lock(), _section: CriticalSection::enter() }
    }

    #[cfg(test)]
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// The same for one writer and many readers. A reader changes nothing, so it may panic.
#[derive(Debug, Default)]
pub struct RwLock<T>(parking_lot::RwLock<T>);

/// The lock of a writer and its critical section, which end together.
pub struct RwLockWriteGuard<'a, T> {
    guard: parking_lot::RwLockWriteGuard<'a, T>,
    _section: CriticalSection,
}

impl<T> RwLock<T> {
    pub fn read(&self) -> parking_lot::RwLockReadGuard<'_, T> {
        self.0.read()
    }

    pub fn write(&self) -> RwLockWriteGuard<'_, T> {
        RwLockWriteGuard { guard: self.0.write(), _section: CriticalSection::enter() }
    }
}

impl<T> Deref for RwLockWriteGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> DerefMut for RwLockWriteGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}
