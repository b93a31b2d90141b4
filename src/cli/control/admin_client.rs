//! A client of the admin listener: HTTP over a unix socket, with one request per connection.
//! Where does the proxy listen, and what is its response?

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
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::super::local_runtime::new_tokio_runtime;
use super::super::{DEFAULT_PATH, escape_control_characters};
use crate::config::ControlPaths;
use crate::sysexits;

/// The admin socket of the packages.
const DEFAULT_SOCKET: &str = "/run/outgate/admin.sock";
/// The time limit of a response: the proxy closes an admin connection then.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(70);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cli) struct AdminSocket(PathBuf);

impl FromStr for AdminSocket {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("unix:") {
            Some(path) if !path.is_empty() => Ok(Self(path.into())),
            _ => Err("write unix:PATH: only a unix socket identifies the user who runs the command"),
        }
    }
}

impl AdminSocket {
    /// Returns the admin sockets of a configuration. Without an explicit file, also that of the packages: the running
    /// proxy may have an older configuration.
    pub(in crate::cli) fn from_config(config: Option<&Path>) -> Vec<Self> {
        let mut sockets = ControlPaths::read(config.unwrap_or(Path::new(DEFAULT_PATH))).sockets;
        if sockets.is_empty() || config.is_none() {
            sockets.push(DEFAULT_SOCKET.into());
        }
        sockets.into_iter().map(Self).collect()
    }
}

/// A request to the admin listener.
pub(in crate::cli) struct AdminRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) body: Vec<u8>,
}

impl AdminRequest {
    pub(in crate::cli) fn get(path: &str) -> Self {
        Self { method: Method::GET, path: path.to_owned(), body: Vec::new() }
    }
    pub(in crate::cli) fn post(path: &str, body: Vec<u8>) -> Self {
        Self { method: Method::POST, path: path.to_owned(), body }
    }
}

/// The reason why there is no response.
#[derive(Debug)]
pub(in crate::cli) enum AdminError {
    /// No process listens on the socket.
    NotListening(String),
    Failed(String),
}

impl AdminError {
    /// Prints the error and returns its exit code.
    pub(in crate::cli) fn report(self) -> ExitCode {
        let (Self::NotListening(message) | Self::Failed(message)) = self;
        eprintln!("outgate: {message}");
        ExitCode::from(sysexits::UNAVAILABLE)
    }
}

/// Sends the request to the first socket that accepts a connection, and parses the response.
pub(super) fn send<T: DeserializeOwned>(sockets: &[AdminSocket], request: &AdminRequest) -> Result<T, AdminError> {
    serde_json::from_slice(&exchange(sockets, request)?)
        .map_err(|error| AdminError::Failed(format!("cannot parse the response of the proxy: {error}")))
}

/// Returns the body of a resource, or why there is none.
pub(in crate::cli) fn fetch(sockets: &[AdminSocket], path: &str) -> Result<Vec<u8>, String> {
    let body = exchange(sockets, &AdminRequest::get(path));
    body.map(|body| body.to_vec()).map_err(|(AdminError::NotListening(error) | AdminError::Failed(error))| error)
}

fn exchange(sockets: &[AdminSocket], request: &AdminRequest) -> Result<Bytes, AdminError> {
    let runtime = new_tokio_runtime().map_err(|_| AdminError::Failed("cannot start the tokio runtime".into()))?;
    let (status, body) = runtime.block_on(async {
        let exchange_with_any = async {
            let (stream, socket) = connect(sockets).await?;
            let failed = |error: hyper::Error| AdminError::Failed(format!("unix:{}: {error}", socket.0.display()));
            exchange_once(stream, request).await.map_err(failed)
        };
        let on_timeout = |_| AdminError::Failed(format!("the proxy did not respond within {RESPONSE_TIMEOUT:?}"));
        timeout(RESPONSE_TIMEOUT, exchange_with_any).await.map_err(on_timeout).flatten()
    })?;
    if !status.is_success() && status != StatusCode::UNPROCESSABLE_ENTITY {
        return Err(AdminError::Failed(error_text(&body)));
    }
    Ok(body)
}

/// Returns the detail of the problem in the body, or the body itself.
fn error_text(body: &[u8]) -> String {
    let problem = serde_json::from_slice::<Value>(body).unwrap_or_default();
    let detail = problem["detail"].as_str().map(str::to_owned);
    let text = detail.unwrap_or_else(|| String::from_utf8_lossy(body).into_owned());
    let field = problem["field"].as_str().map(|field| format!("{field}: ")).unwrap_or_default();
    escape_control_characters(&format!("{field}{}", text.trim_end()))
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
                "no process listens on unix:{path}: outgate is not running, or its admin.listen does not have this socket \
                 (--admin unix:PATH names another)"
            )
        }
        io::ErrorKind::PermissionDenied => {
            format!("permission denied for unix:{path}: run this command as root, or as a member of outgate's group")
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
    request.headers_mut().insert(header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
