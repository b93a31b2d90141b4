//! What drives a connection, for as long as somebody holds the connection.
//! What if nobody needs it any more, and the target does not let it end?

use std::cell::Cell;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hyper::rt::Executor;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::streams::UploadPermit;
use crate::net::connection::Liveness;

/// For what was written to leave, and to say goodbye. A target that does not read would take for ever.
const GRACE: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// The slot of the upload that this task of HTTP/2 sends.
    static UPLOAD: Cell<Option<UploadPermit>>;
}

/// What all handles on a connection share; the connection goes when it does.
pub(super) struct DriverHandle {
    state: Arc<DriverState>,
    _let_go: watch::Sender<()>,
}

/// Runs what drives the connection, in tasks of its own that end with it.
#[derive(Clone)]
pub(super) struct Driver {
    state: Arc<DriverState>,
    let_go: watch::Receiver<()>,
}

struct DriverState {
    liveness: Liveness,
    /// Exchanges.
    under_way: AtomicUsize,
    /// One of them was broken off.
    is_broken: AtomicBool,
}

pub(super) fn new(liveness: &Liveness) -> (Arc<DriverHandle>, Driver) {
    let (under_way, is_broken) = (AtomicUsize::new(0), AtomicBool::new(false));
    let state = Arc::new(DriverState { liveness: liveness.clone(), under_way, is_broken });
    let (_let_go, let_go) = watch::channel(());
    (Arc::new(DriverHandle { state: Arc::clone(&state), _let_go }), Driver { state, let_go })
}

impl DriverHandle {
    /// An exchange begins; it ends, or breaks off.
    pub(super) fn begin(&self) {
        self.state.under_way.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end(&self) {
        self.state.under_way.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn abort_exchange(&self) {
        self.state.is_broken.store(true, Ordering::Relaxed);
        self.end();
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state.is_broken.load(Ordering::Relaxed)
    }
}

impl Drop for DriverHandle {
    fn drop(&mut self) {
        if self.is_broken() {
            self.state.liveness.set_linger_zero();
        }
    }
}

impl Driver {
    /// Runs what owns the connection: until it has ended, or the last handle is gone and a moment has passed. What the
    /// target has not taken by then of an exchange that did not end is not kept for it in the kernel.
    pub(super) fn drive(&self, driver: impl Future<Output: Send> + Send + 'static) {
        let hold = self.clone();
        tokio::spawn(async move {
            let mut driver = pin!(driver);
            let ended = hold.run_until_released(&mut driver).await;
            if !ended || hold.state.under_way.load(Ordering::Relaxed) > 0 {
                hold.state.liveness.set_linger_zero();
            }
        });
    }

    /// Whether it has ended by itself, before it had to.
    async fn run_until_released(&self, driver: impl Future) -> bool {
        let (mut driver, mut let_go) = (pin!(driver), self.let_go.clone());
        tokio::select! {
            biased;
            _ = &mut driver => true,
            _ = let_go.changed() => timeout(GRACE, driver).await.is_ok(),
        }
    }
}

/// Binds the upload on this slot to the current task. Returns whether the current task is one that HTTP/2 has besides.
///
/// An early response leaves an upload that the target may never take, and the library waits for it without end. The
/// upload's task ends [`GRACE`] after the exchange; thereby the library resets the stream, and the client's body is free.
pub(super) fn bind(part: &UploadPermit) -> bool {
    UPLOAD.try_with(|upload| upload.set(Some(part.clone()))).is_ok()
}

/// Resolves when the exchange of this task's upload has been over for [`GRACE`].
async fn upload_is_overdue() {
    match UPLOAD.with(Cell::take) {
        Some(part) => part.outlives_slot().await,
        None => pending().await,
    }
    sleep(GRACE).await;
}

/// The tasks that HTTP/2 has besides; one of them owns the connection.
impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Driver {
    fn execute(&self, task: F) {
        let hold = self.clone();
        let driving = async move {
            let mut task = pin!(task);
            // The task is polled first, which binds its upload.
            let has_ended = tokio::select! {
                biased;
                has_ended = hold.run_until_released(&mut task) => has_ended,
                () = upload_is_overdue() => true,
            };
            if !has_ended {
                hold.state.liveness.set_linger_zero();
            }
        };
        tokio::spawn(UPLOAD.scope(Cell::new(None), driving));
    }
}
