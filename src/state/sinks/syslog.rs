//! Messages for a syslog server: RFC 5424 messages over TCP (RFC 6587) or TLS (RFC 5425).
//! What happens to messages while the server is away?

use std::io;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc::Receiver;
use tokio::time::{Instant, sleep, timeout};

use super::SinkMessage;
use super::status::SinkStatus;
use crate::config::SyslogServer;
use crate::net::log_server::{self, LogServerStream};
use crate::state::Runtime;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest wait for a server that does not read.
const WRITE_TIMEOUT: Duration = Duration::from_secs(10);
/// The pause before the first attempt to connect again. It doubles up to the maximum.
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// The age of a connection that works. A server that ends each connection at once is not dialled without a pause.
const LASTING: Duration = Duration::from_secs(2);

/// Returns the frame of a message, with its length in front (RFC 6587 §3.4.1, octet counting).
pub(super) fn frame(message: &SinkMessage, host: &str) -> Vec<u8> {
    let SinkMessage { at, facility, severity, id, line, .. } = message;
    let (priority, process) = (*facility as u32 * 8 + *severity as u32, std::process::id());
    // A timestamp has six decimal places at most (RFC 5424 §6.2.3). The line is UTF-8 and has no byte order mark.
    let head = format!("<{priority}>1 {at:.6} {host} outgate {process} {id} - ");
    let mut frame = format!("{} {head}", head.len() + line.len()).into_bytes();
    frame.extend_from_slice(line);
    frame
}

/// Sends the frames of the queue until the queue is closed. A frame whose write failed is sent again. Frames for a server
/// that is no longer configured and cannot be reached are dropped when the pause has its maximum.
pub(super) async fn run(
    runtime: Weak<Runtime>,
    server: SyslogServer,
    mut queue: Receiver<Arc<[u8]>>,
    status: Arc<SinkStatus>,
) {
    let (mut unsent, mut backoff) = (None, BACKOFF_MIN);
    loop {
        let sent = match timeout(CONNECT_TIMEOUT, connect(&runtime, &server)).await {
            Ok(Ok(stream)) => {
                let connected = Instant::now();
                let sent = send(stream, &mut queue, &mut unsent, &status).await;
                if connected.elapsed() >= LASTING {
                    backoff = BACKOFF_MIN;
                }
                sent
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(io::Error::other(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()))),
        };
        match sent {
            Ok(()) => return,
            Err(error) => status.fail(error.to_string()),
        }
        if queue.is_closed() && (backoff == BACKOFF_MAX || queue.is_empty() && unsent.is_none()) {
            return;
        }
        sleep(backoff).await;
        backoff = BACKOFF_MAX.min(2 * backoff);
    }
}

/// Connects under the trust and the resolver that are active now.
async fn connect(runtime: &Weak<Runtime>, server: &SyslogServer) -> io::Result<LogServerStream> {
    let active = runtime.upgrade().ok_or(io::ErrorKind::NotConnected)?.active_config();
    let (addresses, tls) = active.find_service(&server.host, server.trust.as_deref(), CONNECT_TIMEOUT).await?;
    let socket = log_server::connect(&addresses, server.port, CONNECT_TIMEOUT).await?;
    if !server.uses_tls {
        return Ok(log_server::plaintext(socket));
    }
    log_server::handshake(socket, &tls, &server.host, Instant::now() + CONNECT_TIMEOUT).await
}

/// Sends frames until the queue is closed.
///
/// # Errors
///
/// The server closed the connection, or does not read. `unsent` then has the frame that was not sent.
async fn send(
    mut stream: LogServerStream,
    queue: &mut Receiver<Arc<[u8]>>,
    unsent: &mut Option<Arc<[u8]>>,
    status: &SinkStatus,
) -> io::Result<()> {
    let (mut discarded, mut is_lasting) = ([0; 512], false);
    let mut lasting = pin!(sleep(LASTING));
    loop {
        if unsent.is_none() {
            tokio::select! {
                next = queue.recv() => match next {
                    Some(frame) => *unsent = Some(frame),
                    None => return stream.shutdown().await.or(Ok(())),
                },
                () = &mut lasting, if !is_lasting => {
                    is_lasting = true;
                    status.connected();
                }
                // A syslog server sends nothing. The end of the stream shows before a write would be lost.
                read = stream.read(&mut discarded) => match read? {
                    0 => return Err(io::Error::other("the server closed the connection")),
                    _ => continue,
                },
            }
        }
        if let Some(frame) = unsent.as_deref() {
            let write = async {
                stream.write_all(frame).await?;
                stream.flush().await
            };
            let slow = || io::Error::other(format!("the server has read nothing for {} s", WRITE_TIMEOUT.as_secs()));
            timeout(WRITE_TIMEOUT, write).await.map_err(|_| slow())??;
            *unsent = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::names::SyslogSeverity;
    use crate::state::sinks::Facility;

    /// The sink has no runtime, so it can reach no server.
    #[tokio::test(start_paused = true)]
    async fn syslog_server_that_was_removed_while_it_was_away_is_not_dialled_for_ever() {
        let server = SyslogServer {
            url: "tcp://127.0.0.1:1".to_owned(),
            host: crate::host::canonical("127.0.0.1").unwrap(),
            port: 1,
            uses_tls: false,
            trust: None,
        };
        for (waiting, longest) in [(0, 0), (1, 120)] {
            let (sender, queue) = tokio::sync::mpsc::channel(2);
            for _ in 0..waiting {
                sender.try_send(Arc::from(&b"frame"[..])).unwrap();
            }
            drop(sender);
            let start = Instant::now();
            run(Weak::new(), server.clone(), queue, Arc::new(SinkStatus::new("messages", "test"))).await;
            let ended = start.elapsed();
            assert!(ended <= Duration::from_secs(longest), "{waiting}: {ended:?}");
            assert!(waiting == 0 || ended >= BACKOFF_MAX / 2, "what waits is tried for some time: {ended:?}");
        }
    }

    /// RFC 5424 §6: HEADER SP STRUCTURED-DATA SP MSG.
    #[test]
    fn syslog_frame_has_its_length_and_the_fields_of_rfc_5424() {
        let message = |severity| SinkMessage {
            at: Timestamp::from_microsecond(1_003_450_000_000_123).unwrap(),
            facility: Facility::Audit,
            severity,
            id: "process.started",
            line: "{\"a\":\"é\"}".into(),
            journal_fields: |_| Ok(Vec::new()),
        };
        let text = String::from_utf8(frame(&message(SyslogSeverity::Informational), "egress-1")).unwrap();
        let (length, sent) = text.split_once(' ').unwrap();
        assert_eq!(length.parse(), Ok(sent.len()));
        let process = std::process::id();
        let head = "<110>1 2001-10-19T00:06:40.000123Z egress-1 outgate";
        assert_eq!(sent, format!("{head} {process} process.started - {{\"a\":\"é\"}}"));
        let text = String::from_utf8(frame(&message(SyslogSeverity::Warning), "egress-1")).unwrap();
        assert!(text.contains("<108>1 "), "{text}");
    }
}
