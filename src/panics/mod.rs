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
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
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
    Contained { future: Some(future), owner: None }
}

/// The futures of one owner, such as the requests of a connection: they end with it. If the owner panics, their drop unwinds
/// them, as if the panic had been their own. The owner holds this value.
#[derive(Default)]
pub struct Group(Arc<OwnerPanic>);

/// The place of the owner's panic, if it is known. Empty: the owner has not panicked.
type OwnerPanic = OnceLock<Option<String>>;

impl Group {
    /// Contains the panics of a future of this group.
    pub fn contain<F: Future>(&self, future: F) -> Contained<F> {
        Contained { future: Some(future), owner: Some(Arc::clone(&self.0)) }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let _ = self.0.set(PLACE.with_borrow(Clone::clone)); // only the owner sets it
        }
    }
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
        owner: Option<Arc<OwnerPanic>>,
    }

    impl<F> PinnedDrop for Contained<F> {
        fn drop(this: Pin<&mut Self>) {
            let this = this.project();
            if this.future.is_some() {
                let future = DropOnUnwind(this.future);
                let _ = catch(|| future.end(this.owner.as_deref().and_then(OnceLock::get)));
            }
        }
    }
}

/// A future that is dropped with this value.
struct DropOnUnwind<'a, F>(Pin<&'a mut Option<F>>);

impl<F> DropOnUnwind<'_, F> {
    /// Drops the future, and unwinds meanwhile if its owner has panicked. The hook has reported that panic.
    fn end(self, panic: Option<&Option<String>>) {
        if let Some(place) = panic {
            PLACE.set(place.clone());
            resume_unwind(Box::new(()));
        }
    }
}

impl<F> Drop for DropOnUnwind<'_, F> {
    fn drop(&mut self) {
        self.0.set(None);
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
