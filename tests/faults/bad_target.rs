//! A target that misbehaves on every connection.
//! What does the target do with a request?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use socket2::SockRef;

use crate::bystander::{Processor, pin};
use crate::support::TEST_TIMEOUT;

#[derive(Clone, Copy)]
pub(crate) enum Behaviour {
    /// Responds at once, and closes: the control of the other behaviours.
    Respond,
    /// Takes the request and sends nothing.
    Stall,
    /// Resets the connection after the request.
    Reset,
    /// Sends the head of the response byte by byte.
    TrickleHead,
    /// Sends the body of the response byte by byte.
    TrickleBody,
    /// Announces more bytes than it sends, and closes.
    WrongLength,
    /// Sends interim responses without end.
    FloodInterim,
    /// Sends a response that ends with the connection, and never closes it.
    NeverClose,
}

/// The pause between two bytes of a response that trickles.
const TRICKLE: Duration = Duration::from_millis(50);

/// Starts a target, and returns its port. Its threads end with their connections, or after `TEST_TIMEOUT`.
pub(crate) fn start(behaviour: Behaviour) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        let _pinned = pin(Processor::Fault);
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || behave(stream, behaviour));
        }
    });
    port
}

/// Returns when outgate has closed the connection.
fn behave(mut stream: TcpStream, behaviour: Behaviour) {
    stream.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.set_write_timeout(Some(TEST_TIMEOUT)).unwrap();
    stream.set_nodelay(true).unwrap();
    let mut received = Vec::new();
    while !received.ends_with(b"\r\n\r\nx") {
        let mut piece = [0; 4096];
        match stream.read(&mut piece) {
            Ok(0) | Err(_) => return,
            Ok(length) => received.extend_from_slice(&piece[..length]),
        }
    }
    match behaviour {
        Behaviour::Respond => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok");
            return;
        }
        Behaviour::Stall => {}
        Behaviour::Reset => return SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap(),
        Behaviour::TrickleHead => trickle(&mut stream, b"HTTP/1.1 200 OK\r\nX-Long: ", b'x'),
        Behaviour::TrickleBody => trickle(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b'x'),
        Behaviour::WrongLength => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nok");
            return;
        }
        Behaviour::FloodInterim => while stream.write_all(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").is_ok() {},
        Behaviour::NeverClose => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok");
        }
    }
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

fn trickle(stream: &mut TcpStream, head: &[u8], byte: u8) {
    let mut is_open = stream.write_all(head).is_ok();
    for _ in 0..400 {
        std::thread::sleep(TRICKLE); // the pause is the behaviour
        is_open = is_open && stream.write_all(&[byte]).is_ok();
        if !is_open {
            return;
        }
    }
}
