//! A bucket of an S3-compatible service as a store.
//! With which credentials, time limits and roots does outgate reach the service?
//!
//! Address, region and credentials come from the environment variables of the AWS tools, `AWS_ENDPOINT_URL`,
//! `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`; plaintext needs `AWS_ALLOW_HTTP=true`. The service is the
//! operator's and no target: the guard and the pools do not apply to it.

use std::io;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::rt::TokioExecutor;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::client::{
    HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse, HttpResponseBody,
    HttpService,
};
use object_store::prefix::PrefixStore;
use object_store::{ClientConfigKey, ClientOptions, ObjectStoreExt, RetryConfig};

/// The time for one request. Captures that wait meanwhile are in memory.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens what is below `folder` in the bucket of a URL, `s3://BUCKET/PREFIX`. `None`: `store` is the path of a folder.
pub fn open_bucket(store: &Path, folder: &str) -> object_store::Result<Option<PrefixStore<AmazonS3>>> {
    let Some(bucket) = store.to_str().and_then(|store| store.strip_prefix("s3://")) else { return Ok(None) };
    let (bucket, prefix) = bucket.split_once('/').unwrap_or((bucket, ""));
    Ok(Some(PrefixStore::new(open(bucket)?, format!("{prefix}/{folder}"))))
}

/// Stores a small object below the prefix of a bucket.
pub async fn put_object(bucket: &Path, name: &str, bytes: Vec<u8>) -> io::Result<()> {
    let bucket = open_bucket(bucket, "")?.ok_or(io::ErrorKind::InvalidInput)?;
    bucket.put(&name.into(), bytes.into()).await?;
    Ok(())
}

/// Returns a small object. One of more than `bytes_max` bytes is an error.
pub async fn get_object(bucket: &Path, name: &str, bytes_max: usize) -> io::Result<Bytes> {
    let bucket = open_bucket(bucket, "")?.ok_or(io::ErrorKind::InvalidInput)?;
    match bucket.head(&name.into()).await?.size {
        size if size > bytes_max as u64 => Err(io::Error::other(format!("{name} has {size} bytes"))),
        _ => Ok(bucket.get(&name.into()).await?.bytes().await?),
    }
}

fn open(bucket: &str) -> object_store::Result<AmazonS3> {
    // object_store logs each retry, and a service that is gone must not fill the log.
    let retry = RetryConfig { max_retries: 0, ..RetryConfig::default() };
    let builder = AmazonS3Builder::from_env().with_bucket_name(bucket).with_retry(retry);
    builder.with_http_connector(Connector).build()
}

/// The HTTP client of the store: TLS by rustls with the roots of the host.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, options: &ClientOptions) -> object_store::Result<HttpClient> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        let builder = HttpsConnectorBuilder::new().with_provider_and_native_roots(provider);
        let builder = builder.map_err(|error| object_store::Error::Generic { store: "S3", source: Box::new(error) })?;
        let allows_http = options.get_config_value(&ClientConfigKey::AllowHttp).is_some_and(|value| value == "true");
        let builder = if allows_http { builder.https_or_http() } else { builder.https_only() };
        // The thread polls no connection between two requests, so it keeps none.
        let mut client = Client::builder(TokioExecutor::new());
        Ok(HttpClient::new(Service(client.pool_max_idle_per_host(0).build(builder.enable_http1().build()))))
    }
}

#[derive(Debug)]
struct Service(Client<HttpsConnector<TcpConnector>, HttpRequestBody>);

#[async_trait]
impl HttpService for Service {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let exchange = async {
            let response = self.0.request(request).await;
            let (head, body) = response.map_err(|error| HttpError::new(HttpErrorKind::Connect, error))?.into_parts();
            // Objects are small. The whole body is within the timeout.
            let body = body.collect().await.map_err(|error| HttpError::new(HttpErrorKind::Interrupted, error))?;
            let body = Full::new(body.to_bytes()).map_err(|never| match never {});
            Ok(HttpResponse::from_parts(head, HttpResponseBody::new(body)))
        };
        let timed_out = || HttpError::new(HttpErrorKind::Timeout, io::Error::from(io::ErrorKind::TimedOut));
        tokio::time::timeout(REQUEST_TIMEOUT, exchange).await.unwrap_or_else(|_| Err(timed_out()))
    }
}
