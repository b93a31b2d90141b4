//! A bare relay of hyper's server, hyper-util's client with its pool, and rustls.
//! What does a relay cost that has no rules, and uses the usual libraries?

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, header};
use hyper_rustls::{FixedServerNameResolver, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::{TcpListener, TcpSocket};

use crate::Error;
use crate::authority::TARGET;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(long)]
    listen: SocketAddr,
    #[arg(long)]
    source: IpAddr,
    /// The only root that is trusted.
    #[arg(long)]
    root: PathBuf,
}

type Body = BoxBody<Bytes, hyper::Error>;
type Connector = HttpsConnector<HttpConnector>;

pub(crate) async fn run(arguments: Arguments) -> Result<(), Error> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(&arguments.root)? {
        roots.add(certificate?)?;
    }
    let tls = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let mut http = HttpConnector::new();
    http.set_local_address(Some(arguments.source));
    http.set_nodelay(true);
    http.enforce_http(false);
    let connector = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http();
    let connector = connector.with_server_name_resolver(FixedServerNameResolver::new(ServerName::try_from(TARGET)?));
    let connector = connector.enable_http1().wrap_connector(http);
    let client: Client<Connector, Incoming> =
        Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
    let listener = TcpListener::bind(arguments.listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let client = client.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request| relay(request, client.clone(), arguments.source));
            let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = connection.with_upgrades().await;
        });
    }
}

async fn relay(
    mut request: Request<Incoming>,
    client: Client<Connector, Incoming>,
    source: IpAddr,
) -> Result<Response<Body>, Infallible> {
    if request.method() == Method::CONNECT {
        return Ok(tunnel(request, source).await);
    }
    request.headers_mut().remove("proxy-connection");
    request.headers_mut().remove(header::CONNECTION);
    // The address of the target in place of its name: an address needs no resolver. The field Host keeps the name.
    let (scheme, port) = (request.uri().scheme_str().unwrap_or("http"), request.uri().port_u16().unwrap_or(80));
    let uri = format!("{scheme}://127.0.0.1:{port}{}", request.uri().path());
    *request.uri_mut() = uri.parse().expect("a path that was parsed");
    Ok(match client.request(request).await {
        Ok(response) => response.map(BodyExt::boxed),
        Err(_) => empty(StatusCode::BAD_GATEWAY),
    })
}

async fn tunnel(request: Request<Incoming>, source: IpAddr) -> Response<Body> {
    let port = request.uri().port_u16().unwrap_or(443);
    let dialled = async {
        let socket = TcpSocket::new_v4()?;
        socket.bind((source, 0).into())?;
        socket.set_nodelay(true)?;
        socket.connect((Ipv4Addr::LOCALHOST, port).into()).await
    };
    let Ok(mut target) = dialled.await else { return empty(StatusCode::BAD_GATEWAY) };
    tokio::spawn(async move {
        if let Ok(client) = hyper::upgrade::on(request).await {
            let _ = tokio::io::copy_bidirectional(&mut TokioIo::new(client), &mut target).await;
        }
    });
    empty(StatusCode::OK)
}

fn empty(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response
}
