//! The memory of connections that wait.
//! How much memory of the proxy does an idle client use, or an idle tunnel?

use std::time::Duration;

use crate::client::Way;
use crate::results::Result as Row;
use crate::{Error, process};

/// The time in which the proxy may free what it no longer needs.
const SETTLE: Duration = Duration::from_secs(1);

/// Each connection makes one delivery first, so that the proxy has used its buffers.
pub(crate) async fn measure(way: &Way, count: usize, pid: u32) -> Result<Row, Error> {
    tokio::time::sleep(SETTLE).await;
    let before = process::memory(pid)?;
    let mut held = Vec::with_capacity(count);
    while held.len() < count {
        let mut conn = way.open().await?;
        if !way.exchange(&mut conn).await? {
            return Err("the contender keeps no connection".into());
        }
        held.push(conn);
    }
    tokio::time::sleep(SETTLE).await;
    let bytes = (process::memory(pid)? - before) / count as f64;
    Ok(Row { deliveries: count as f64, sent: count as f64, bytes, at_rest: before, ..Row::default() })
}
