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

/// A lock and its critical section, which end together.
pub struct LockGuard<G> {
    guard: G,
    _section: CriticalSection,
}

impl<G: Deref> Deref for LockGuard<G> {
    type Target = G::Target;

    fn deref(&self) -> &G::Target {
        &self.guard
    }
}

impl<G: DerefMut> DerefMut for LockGuard<G> {
    fn deref_mut(&mut self) -> &mut G::Target {
        &mut self.guard
    }
}

pub type MutexGuard<'a, T> = LockGuard<parking_lot::MutexGuard<'a, T>>;

/// A mutex that no panic leaves unlocked with a wrong value. It is not poisoned, because the process ends.
#[derive(Debug, Default)]
pub struct Mutex<T>(parking_lot::Mutex<T>);

impl<T> Mutex<T> {
    pub const fn new(value: T) -> Self {
        Self(parking_lot::Mutex::new(value))
    }

    pub fn lock(&self) -> MutexGuard<'_, T> {
        LockGuard { guard: self.0.lock(), _section: CriticalSection::enter() }
    }

    #[cfg(test)]
    pub fn is_locked(&self) -> bool {
        self.0.is_locked()
    }
}

/// The same for one writer and many readers. A reader changes nothing, so it may panic.
#[derive(Debug, Default)]
pub struct RwLock<T>(parking_lot::RwLock<T>);

impl<T> RwLock<T> {
    pub fn read(&self) -> parking_lot::RwLockReadGuard<'_, T> {
        self.0.read()
    }

    pub fn write(&self) -> LockGuard<parking_lot::RwLockWriteGuard<'_, T>> {
        LockGuard { guard: self.0.write(), _section: CriticalSection::enter() }
    }
}
