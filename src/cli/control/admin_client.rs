//! HTTP over a unix socket, one request a connection.
//! Where does the proxy listen, and what does it answer?

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::local_runtime::new_tokio_runtime;
use super::super::{DEFAULT_PATH, escape_control_characters};
use crate::config::ControlPaths;
use crate::sysexits;

/// Where the packages have it.
const DEFAULT_SOCKET: &str = "/run/outgate/admin.sock";
/// As long as the proxy keeps a connection that asks.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(70);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct AdminSocket(PathBuf);

impl FromStr for AdminSocket {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err("write unix:PATH: over the network nobody would know who asks"),
        }
    }
}

impl AdminSocket {
    /// Those of a configuration; without a file named, also where the packages have it: what runs may be older than the
    /// file.
    pub(super) fn from_config(config: Option<&Path>) -> Vec<Self> {
        let mut sockets = ControlPaths::read(config.unwrap_or(Path::new(DEFAULT_PATH))).sockets;
        if sockets.is_empty() || config.is_none() {
            sockets.push(DEFAULT_SOCKET.into());
        }
        sockets.into_iter().map(Self).collect()
    }
}

/// What to ask.
pub(super) struct AdminRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

impl AdminRequest {
    pub(super) fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), body: Vec::new() }
    }
    pub(super) fn post(path: &str, body: Vec<u8>) -> Self {
        Self { method: Method::POST, path: path.to_owned(), body }
    }
}

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum AdminError {
    /// Nobody listens there.
    NotListening(String),
    Failed(String),
}

impl AdminError {
    /// Says so, and gives the exit code for it.
    pub(super) fn report(self) -> ExitCode {
        let (Self::NotListening(message) | Self::Failed(message)) = self;
        eprintln!("outgate: {message}");
        ExitCode::from(sysexits::UNAVAILABLE)
    }
}

/// Asks the first of the sockets where somebody listens.
pub(super) fn send<T: DeserializeOwned>(sockets: &[AdminSocket], request: &AdminRequest) -> Result<T, AdminError> {
    let runtime = new_tokio_runtime().map_err(|_| AdminError::Failed("cannot wait for an answer".into()))?;
    let (status, body) = runtime.block_on(async {
        let exchange_with_any = async {
            let (stream, socket) = connect(sockets).await?;
            let failed = |error: hyper::Error| AdminError::Failed(format!("unix:{}: {error}", socket.0.display()));
            exchange_once(stream, request).await.map_err(failed)
        };
        let on_timeout = |_| AdminError::Failed(format!("no answer within {RESPONSE_TIMEOUT:?}"));
        timeout(RESPONSE_TIMEOUT, exchange_with_any).await.map_err(on_timeout).flatten()
    })?;
    let error_text = || escape_control_characters(String::from_utf8_lossy(&body).trim_end());
    if !status.is_success() && status != StatusCode::UNPROCESSABLE_ENTITY {
        return Err(AdminError::Failed(error_text()));
    }
    serde_json::from_slice(&body).map_err(|error| AdminError::Failed(format!("an answer that says nothing: {error}")))
}

async fn connect(sockets: &[AdminSocket]) -> Result<(UnixStream, &AdminSocket), AdminError> {
    let (mut errors, mut may_be_listening) = (Vec::new(), false);
    for socket in sockets {
        match UnixStream::connect(&socket.0).await {
            Ok(stream) => return Ok((stream, socket)),
            Err(error) => {
                may_be_listening |= !is_not_listening(&error);
                errors.push(describe_error(socket, &error));
            }
        }
    }
    let message = errors.join("\n");
    Err(if may_be_listening { AdminError::Failed(message) } else { AdminError::NotListening(message) })
}

fn is_not_listening(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

fn describe_error(AdminSocket(path): &AdminSocket, error: &io::Error) -> String {
    let path = path.display();
    match error.kind() {
        _ if is_not_listening(error) => {
            format!(
                "no process listens on unix:{path}: is outgate running, and does its admin.listen have that socket? \
                 --admin names another one"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("unix:{path} is not for you: ask as root, or as a member of the group that outgate runs as")
        }
        _ => format!("unix:{path}: {error}"),
    }
}

async fn exchange_once(stream: UnixStream, question: &AdminRequest) -> Result<(StatusCode, Bytes), hyper::Error> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let mut request = Request::new(Full::new(Bytes::from(question.body.clone())));
    *request.method_mut() = question.method.clone();
    *request.uri_mut() = question.path.parse().unwrap_or_default();
    request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("outgate"));
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
