//! An HTTP client of the proxy: it writes a request and reads the response.
//! What does a client of the proxy see?

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

pub(super) struct DemoClient {
    pub(super) proxy: SocketAddr,
}

pub(super) struct DemoResponse {
    pub(super) status: u16,
    head: String,
}

impl DemoResponse {
    pub(super) fn field(&self, name: &str) -> &str {
        let lines = self.head.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(other, _)| other.eq_ignore_ascii_case(name)).map(|(_, value)| value).next().unwrap_or("")
    }
}

const READ_TIMEOUT: Duration = Duration::from_secs(10);

impl DemoClient {
    pub(super) fn post(&self, target: &str, fields: &[(&str, &str)], body: &str) -> io::Result<DemoResponse> {
        let mut stream = TcpStream::connect(self.proxy)?;
        stream.set_read_timeout(Some(READ_TIMEOUT))?;
        let mut request = format!("POST {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.proxy);
        for (name, value) in fields {
            request.push_str(&format!("{name}: {value}\r\n"));
        }
        request.push_str(&format!("Content-Length: {}\r\n\r\n{body}", body.len()));
        stream.write_all(request.as_bytes())?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        let head = response.split("\r\n\r\n").next().unwrap_or_default().to_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok());
        Ok(DemoResponse { status: status.ok_or(io::ErrorKind::InvalidData)?, head })
    }
}
