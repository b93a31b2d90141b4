//! HTTP/1.1 as the load generator and the receiver need it: heads, and bodies that they count.
//! Where does a message end, and does its connection stay?

use std::io::{self, ErrorKind};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

const FIELDS_MAX: usize = 64;
const HEAD_MAX: usize = 32 * 1024;

/// The end of a body.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Framing {
    Length(u64),
    Chunked,
    UntilClose,
}

/// The head of a request or of a response.
#[derive(Debug)]
pub(crate) struct Head {
    /// The status of a response; 0 for a request.
    pub(crate) status: u16,
    /// The target of a GET, which asks for a number of bytes.
    pub(crate) get: Option<String>,
    pub(crate) framing: Framing,
    pub(crate) close: bool,
    /// The value of the header that carries the signature.
    pub(crate) signature: Option<Vec<u8>>,
}

/// The header that carries the signature of the contenders that sign.
pub(crate) const SIGNATURE: &str = "webhook-signature";

/// A stream, and the bytes that were read and not used.
pub(crate) struct Conn<S> {
    stream: S,
    buffer: Vec<u8>,
    used: usize,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Conn<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new(), used: 0 }
    }

    /// Returns the stream. It has no bytes that were read and not used.
    pub(crate) fn into_stream(self) -> io::Result<S> {
        if self.used == self.buffer.len() { Ok(self.stream) } else { Err(invalid("bytes after the response")) }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    pub(crate) async fn shutdown(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Returns the head of the next request. `None`: the client closed the connection.
    pub(crate) async fn request(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some((head, length)) = parse_request(&self.buffer[self.used..])? {
                self.used += length;
                return Ok(Some(head));
            }
            match self.fill().await {
                Err(error) if error.kind() == ErrorKind::UnexpectedEof && self.used == self.buffer.len() => {
                    return Ok(None);
                }
                filled => filled?,
            }
        }
    }

    /// Returns the head of the next final response. A 2xx to CONNECT has no body (RFC 9110 §9.3.6).
    pub(crate) async fn response(&mut self, to_connect: bool) -> io::Result<Head> {
        loop {
            match parse_response(&self.buffer[self.used..], to_connect)? {
                Some((head, length)) => {
                    self.used += length;
                    if head.status >= 200 {
                        return Ok(head);
                    }
                }
                None => self.fill().await?,
            }
        }
    }

    /// Reads the body, passes its bytes to `sink`, and returns their number.
    pub(crate) async fn body(&mut self, framing: Framing, sink: &mut impl FnMut(&[u8])) -> io::Result<u64> {
        let mut total = 0;
        match framing {
            Framing::Length(length) => {
                self.exactly(length, sink).await?;
                total = length;
            }
            Framing::Chunked => loop {
                let line = self.line().await?;
                let digits = line.split(|byte| *byte == b';').next().unwrap_or_default().trim_ascii();
                let size = std::str::from_utf8(digits).ok().and_then(|text| u64::from_str_radix(text, 16).ok());
                let size = size.ok_or_else(|| invalid("size of a chunk"))?;
                self.exactly(size, sink).await?;
                total += size;
                while !self.line().await?.is_empty() {} // the end of the chunk, or the trailers
                if size == 0 {
                    break;
                }
            },
            Framing::UntilClose => loop {
                total += self.take(u64::MAX, sink);
                match self.fill().await {
                    Err(error) if error.kind() == ErrorKind::UnexpectedEof => break,
                    filled => filled?,
                }
            },
        }
        Ok(total)
    }

    async fn exactly(&mut self, length: u64, sink: &mut impl FnMut(&[u8])) -> io::Result<()> {
        let mut left = length;
        loop {
            left -= self.take(left, sink);
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    fn take(&mut self, limit: u64, sink: &mut impl FnMut(&[u8])) -> u64 {
        let unused = &self.buffer[self.used..];
        let count = usize::try_from(limit).map_or(unused.len(), |limit| limit.min(unused.len()));
        sink(&unused[..count]);
        self.used += count;
        count as u64
    }

    async fn line(&mut self) -> io::Result<Vec<u8>> {
        loop {
            let unused = &self.buffer[self.used..];
            if let Some(end) = unused.iter().position(|byte| *byte == b'\n') {
                let line = unused[..end].trim_ascii_end().to_vec();
                self.used += end + 1;
                return Ok(line);
            }
            self.fill().await?;
        }
    }

    /// Reads more bytes. A closed connection is an error.
    async fn fill(&mut self) -> io::Result<()> {
        self.buffer.drain(..self.used);
        self.used = 0;
        if self.buffer.is_empty() {
            // The capacity of a connection that waits: the figures of the receiver need no large buffer.
            self.buffer.reserve(4096);
        } else if self.buffer.len() > HEAD_MAX {
            return Err(invalid("a head that is too large"));
        }
        match self.stream.read_buf(&mut self.buffer).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> Conn<S> {
    /// Reads and drops `length` bytes of a body through a large buffer.
    pub(crate) async fn discard(&mut self, length: u64, buffer: &mut [u8]) -> io::Result<()> {
        let buffered = (self.buffer.len() - self.used).min(usize::try_from(length).unwrap_or(usize::MAX));
        self.used += buffered;
        let mut left = length - buffered as u64;
        while left > 0 {
            let most = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            match self.stream.read(&mut buffer[..most]).await? {
                0 => return Err(ErrorKind::UnexpectedEof.into()),
                count => left -= count as u64,
            }
        }
        Ok(())
    }
}

fn parse_request(bytes: &[u8]) -> io::Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let httparse::Status::Complete(length) = request.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let get = (request.method == Some("GET")).then(|| request.path.unwrap_or_default().to_owned());
    let head = Head { get, ..head(request.headers, request.version, 0, Framing::Length(0)) };
    Ok(Some((head, length)))
}

fn parse_response(bytes: &[u8], to_connect: bool) -> io::Result<Option<(Head, usize)>> {
    let mut fields = [httparse::EMPTY_HEADER; FIELDS_MAX];
    let mut response = httparse::Response::new(&mut fields);
    let httparse::Status::Complete(length) = response.parse(bytes).map_err(io::Error::other)? else { return Ok(None) };
    let status = response.code.unwrap_or_default();
    let mut head = head(response.headers, response.version, status, Framing::UntilClose);
    if status < 200 || [204, 304].contains(&status) || (to_connect && status < 300) {
        head.framing = Framing::Length(0);
    }
    head.close |= head.framing == Framing::UntilClose;
    Ok(Some((head, length)))
}

fn head(fields: &[httparse::Header<'_>], version: Option<u8>, status: u16, otherwise: Framing) -> Head {
    let value = |name: &str| fields.iter().find(|field| field.name.eq_ignore_ascii_case(name)).map(|field| field.value);
    let length = value("content-length").and_then(|text| std::str::from_utf8(text).ok()?.trim().parse().ok());
    let framing = match (value("transfer-encoding"), length) {
        (Some(_), _) => Framing::Chunked,
        (None, Some(length)) => Framing::Length(length),
        (None, None) => otherwise,
    };
    let close = match value("connection") {
        Some(options) => options.eq_ignore_ascii_case(b"close"),
        None => version == Some(0),
    };
    Head { status, get: None, framing, close, signature: value(SIGNATURE).map(<[u8]>::to_vec) }
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, what)
}
