//! Containment of panics: a mistake in the code of one delivery ends that delivery, any other mistake ends the process.
//! Which panics does the process survive?
//!
//! A future under [`contain`] belongs to one client connection, one request, or one connection to a target. Unwinding
//! drops its permits, its connections and its record. Everything else is shared: a task that has ended without notice, or
//! a table that was changed by half, would harm every later delivery. So the process survives a panic only inside such a
//! future, and only outside of a [`CriticalSection`].

mod lock;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use pin_project_lite::pin_project;
use tokio::task::JoinHandle;

pub use lock::{CriticalSection, Mutex, MutexGuard, RwLock};

thread_local! {
    /// The thread runs a future that is contained.
    static IS_CONTAINED: Cell<bool> = const { Cell::new(false) };
    /// The place of the last panic of this thread.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
}

static COUNT: AtomicU64 = AtomicU64::new(0);
static LAST: parking_lot::Mutex<Option<Instant>> = parking_lot::Mutex::new(None);

/// A panic that was contained. Its text is the place in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Panicked(String);

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Panicked {}

impl Panicked {
    /// Returns the last panic of this thread.
    pub fn last() -> Self {
        let place = PLACE.with_borrow(Clone::clone);
        Self(place.map_or_else(|| "panic".to_owned(), |place| format!("panic at {place}")))
    }
}

/// Notes a panic, in the panic hook. Returns whether the process survives it; the hook ends the process otherwise.
#[must_use]
pub fn observe(panic: &PanicHookInfo<'_>) -> bool {
    let place = panic.location().map(|at| format!("{}:{}:{}", at.file(), at.line(), at.column()));
    PLACE.set(place);
    let is_contained = IS_CONTAINED.get() && !CriticalSection::is_entered();
    if is_contained {
        COUNT.fetch_add(1, Ordering::Relaxed);
        *LAST.lock() = Some(Instant::now());
    }
    is_contained
}

/// Returns the number of panics that the process has survived.
pub fn count() -> u64 {
    COUNT.load(Ordering::Relaxed)
}

/// Returns whether the process has survived a panic within `period`.
pub fn occurred_within(period: Duration) -> bool {
    LAST.lock().is_some_and(|last| last.elapsed() < period)
}

/// Runs a part of a delivery.
///
/// # Errors
///
/// The part panicked. The caller drops what the part may have changed.
pub fn catch<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
    let outer = IS_CONTAINED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(run));
    IS_CONTAINED.set(outer);
    result.map_err(|_: Box<dyn Any + Send>| Panicked::last())
}

/// Contains the panics of a future: it then resolves to an error. The future is dropped at once.
pub fn contain<F: Future>(future: F) -> Contained<F> {
    Contained { future: Some(future) }
}

/// Spawns a task whose panic harms only the delivery or the connection that it works for.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> JoinHandle<Result<T, Panicked>> {
    tokio::spawn(contain(future))
}

pin_project! {
    /// A future whose panics are contained, in its polls and in its drop.
    pub struct Contained<F> {
        #[pin]
        future: Option<F>,
    }

    impl<F> PinnedDrop for Contained<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut future = this.project().future;
            if future.is_some() {
                let _ = catch(|| future.set(None));
            }
        }
    }
}

impl<F: Future> Future for Contained<F> {
    type Output = Result<F::Output, Panicked>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut future = self.project().future;
        let polled = catch(|| future.as_mut().as_pin_mut().expect("it has not panicked before").poll(cx));
        polled.map_or_else(
            |panicked| {
                let _ = catch(|| future.set(None));
                Poll::Ready(Err(panicked))
            },
            |polled| polled.map(Ok),
        )
    }
}

#[cfg(test)]
mod tests;
