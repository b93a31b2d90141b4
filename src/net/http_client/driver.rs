//! The tasks that drive a connection, and the handle that ends them.
//! When does a connection end if the target does not close it?

use std::cell::Cell;
use std::future::pending;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use hyper::rt::Executor;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::streams::UploadPermit;
use crate::net::connection::Liveness;
use crate::panics::{self, Mutex};

/// Time to write pending bytes and close in order after the last handle is dropped. A target that does not read would
/// delay the end forever.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

tokio::task_local! {
    /// The permit of the upload that this HTTP/2 task sends.
    static UPLOAD: Cell<Option<UploadPermit>>;
}

/// The state that all handles on a connection share. Dropping it ends the connection.
pub(super) struct DriverHandle {
    state: Arc<DriverState>,
    _released: watch::Sender<()>,
}

/// Spawns the tasks that drive the connection, and ends them with it.
#[derive(Clone)]
pub(super) struct Driver {
    state: Arc<DriverState>,
    released: watch::Receiver<()>,
}

struct DriverState {
    liveness: Liveness,
    exchanges: Mutex<Exchanges>,
}

#[derive(Default)]
struct Exchanges {
    open: usize,
    is_one_aborted: bool,
}

pub(super) fn pair(liveness: &Liveness) -> (Arc<DriverHandle>, Driver) {
    let state = Arc::new(DriverState { liveness: liveness.clone(), exchanges: Mutex::default() });
    let (_released, released) = watch::channel(());
    (Arc::new(DriverHandle { state: Arc::clone(&state), _released }), Driver { state, released })
}

impl DriverHandle {
    /// Counts a new exchange, which must be ended or aborted.
    pub(super) fn begin_exchange(&self) {
        self.state.exchanges.lock().open += 1;
    }

    pub(super) fn end_exchange(&self) {
        self.state.exchanges.lock().open -= 1;
    }

    pub(super) fn abort_exchange(&self) {
        let mut exchanges = self.state.exchanges.lock();
        (exchanges.open, exchanges.is_one_aborted) = (exchanges.open - 1, true);
    }

    pub(super) fn is_aborted(&self) -> bool {
        self.state.exchanges.lock().is_one_aborted
    }
}

impl Drop for DriverHandle {
    fn drop(&mut self) {
        if self.is_aborted() {
            self.state.liveness.set_linger_zero();
        }
    }
}

impl Driver {
    /// Spawns the task that owns the connection. It runs until the connection ends, or until [`RELEASE_TIMEOUT`] after
    /// the last handle is dropped. If an exchange is open then, the kernel discards what the target has not received.
    pub(super) fn spawn(&self, task: impl Future<Output: Send> + Send + 'static) {
        let driver = self.clone();
        panics::spawn(async move {
            let mut task = pin!(task);
            let ended = driver.run_until_released(&mut task).await;
            if !ended || driver.state.exchanges.lock().open > 0 {
                driver.state.liveness.set_linger_zero();
            }
        });
    }

    /// Runs the task, and returns whether it ended by itself.
    async fn run_until_released(&self, task: impl Future) -> bool {
        let (mut task, mut released) = (pin!(task), self.released.clone());
        tokio::select! {
            biased;
            _ = &mut task => true,
            _ = released.changed() => timeout(RELEASE_TIMEOUT, task).await.is_ok(),
        }
    }
}

/// Binds the upload with this permit to the current task. Returns whether the current task is one that the HTTP/2
/// library has spawned.
///
/// After an early response the target may never read the rest of the upload, and h2 would wait for it forever. So the
/// upload's task ends [`RELEASE_TIMEOUT`] after the exchange. Then h2 resets the stream, and the client's body is
/// released.
pub(super) fn bind_upload(permit: &UploadPermit) -> bool {
    UPLOAD.try_with(|upload| upload.set(Some(permit.clone()))).is_ok()
}

/// Resolves [`RELEASE_TIMEOUT`] after the exchange of this task's upload has ended.
async fn upload_overdue() {
    match UPLOAD.with(Cell::take) {
        Some(permit) => permit.exchange_ended().await,
        None => pending().await,
    }
    sleep(RELEASE_TIMEOUT).await;
}

/// Runs the tasks that hyper spawns for HTTP/2; one of them owns the connection.
impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Driver {
    fn execute(&self, task: F) {
        let driver = self.clone();
        let driving = async move {
            let mut task = pin!(task);
            // The first poll of the task binds its upload.
            let has_ended = tokio::select! {
                biased;
                has_ended = driver.run_until_released(&mut task) => has_ended,
                () = upload_overdue() => true,
            };
            if !has_ended {
                driver.state.liveness.set_linger_zero();
            }
        };
        panics::spawn(UPLOAD.scope(Cell::new(None), driving));
    }
}
