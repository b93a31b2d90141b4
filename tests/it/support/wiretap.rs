//! A relay between a client and a server that records the bytes, and can lose what the server sends.
//! Which bytes did each side send, and over how many connections?

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};

/// The bytes that one connection has transferred so far.
#[derive(Clone, Default)]
pub struct Traffic {
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
    /// Whether the client has ended the connection: `sent` is complete.
    pub has_ended: bool,
}

pub struct Wiretap {
    pub address: SocketAddr,
    traffic: Arc<(Mutex<Vec<Traffic>>, Condvar)>,
    /// The first connections, as many, no longer transfer what the server sends.
    frozen: Arc<AtomicUsize>,
    loss: Arc<Mutex<Option<Loss>>>,
}

/// What happens to the answers on connections over which the client sends a text.
struct Loss {
    text: String,
    /// The number of connections that are affected.
    count: usize,
    /// The connection is closed when the server answers. Otherwise, it stays open.
    closes: bool,
}

impl Wiretap {
    pub fn before(proxy: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().unwrap();
        let tap = Self { address, traffic: Arc::default(), frozen: Arc::default(), loss: Arc::default() };
        let (traffic, frozen, loss) = (Arc::clone(&tap.traffic), Arc::clone(&tap.frozen), Arc::clone(&tap.loss));
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                // A server that does not run now may run later.
                let Ok(server) = TcpStream::connect(proxy) else { continue };
                let index = {
                    let mut all = traffic.0.lock().unwrap();
                    all.push(Traffic::default());
                    traffic.1.notify_all();
                    all.len() - 1
                };
                let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let (is_held, is_closed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
                let (copy, loss) = (Arc::clone(&traffic), Arc::clone(&loss));
                let affected = [Arc::clone(&is_held), Arc::clone(&is_closed)];
                std::thread::spawn(move || {
                    relay(up.0, up.1, |piece| {
                        // Before the server receives it.
                        if let Some(loss) = &mut *loss.lock().unwrap()
                            && loss.count > 0
                            && piece.windows(loss.text.len()).any(|window| window == loss.text.as_bytes())
                            && !affected[usize::from(loss.closes)].swap(true, Ordering::Relaxed)
                        {
                            loss.count -= 1;
                        }
                        copy.0.lock().unwrap()[index].sent.extend_from_slice(piece);
                        copy.1.notify_all();
                        true
                    });
                    copy.0.lock().unwrap()[index].has_ended = true;
                    copy.1.notify_all();
                });
                let (copy, frozen) = (Arc::clone(&traffic), Arc::clone(&frozen));
                let closer = client.try_clone().unwrap();
                std::thread::spawn(move || {
                    relay(server, client, |piece| {
                        let is_frozen = index < frozen.load(Ordering::Relaxed);
                        copy.0.lock().unwrap()[index].received.extend_from_slice(piece);
                        let is_closed = is_closed.load(Ordering::Relaxed);
                        if is_closed {
                            let _ = closer.shutdown(Shutdown::Both);
                        }
                        !(is_frozen || is_closed || is_held.load(Ordering::Relaxed))
                    });
                });
            }
        });
        tap
    }

    /// Freezes the connections so far: the server still receives, and the client no longer does.
    pub fn freeze(&self) {
        self.frozen.store(self.traffic.0.lock().unwrap().len(), Ordering::Relaxed);
    }

    /// Loses the answers on each connection from the moment at which the client sends this text over it. The server receives it.
    pub fn hold_answers(&self, text: &str) {
        *self.loss.lock().unwrap() = Some(Loss { text: text.to_owned(), count: usize::MAX, closes: false });
    }

    /// Loses the answers on the next connection over which the client sends this text. The server receives it.
    pub fn hold_next_answer(&self, text: &str) {
        *self.loss.lock().unwrap() = Some(Loss { text: text.to_owned(), count: 1, closes: false });
    }

    /// Closes the next `count` connections over which the client sends this text in place of an answer. The server receives it.
    pub fn close_in_place_of_answers(&self, text: &str, count: usize) {
        *self.loss.lock().unwrap() = Some(Loss { text: text.to_owned(), count, closes: true });
    }

    /// Waits until the client has sent this text over a connection.
    pub fn wait_for_sent(&self, text: &str) {
        let is_sent = |all: &[Traffic]| {
            all.iter().any(|one| one.sent.windows(text.len()).any(|window| window == text.as_bytes()))
        };
        let (all, more) = (self.traffic.0.lock().unwrap(), &self.traffic.1);
        let (all, _) = more.wait_timeout_while(all, super::TEST_TIMEOUT, |all| !is_sent(all)).unwrap();
        assert!(is_sent(&all), "the client has not sent {text}");
    }

    /// Returns the traffic of every connection so far, in order.
    pub fn traffic(&self) -> Vec<Traffic> {
        self.traffic.0.lock().unwrap().clone()
    }

    /// Waits for `count` connections, and returns their traffic. The client may know of a connection before the relay.
    pub fn wait_for_connections(&self, count: usize) -> Vec<Traffic> {
        let (all, more) = (self.traffic.0.lock().unwrap(), &self.traffic.1);
        more.wait_timeout_while(all, super::TEST_TIMEOUT, |all| all.len() < count).unwrap().0.clone()
    }

    /// Waits until the client has ended this connection, and returns all that it sent.
    pub fn wait_for_all_sent(&self, index: usize) -> Vec<u8> {
        let (all, more) = (self.traffic.0.lock().unwrap(), &self.traffic.1);
        let (all, _) = more.wait_timeout_while(all, super::TEST_TIMEOUT, |all| !all[index].has_ended).unwrap();
        assert!(all[index].has_ended, "the client has not ended connection {index}");
        all[index].sent.clone()
    }

    /// Waits for a connection from `start` on over which the client has sent nothing, and returns its index.
    pub fn wait_for_silent_connection(&self, start: usize) -> usize {
        let silent = |all: &[Traffic]| all.iter().skip(start).position(|one| one.sent.is_empty());
        let (all, more) = (self.traffic.0.lock().unwrap(), &self.traffic.1);
        let (all, _) = more.wait_timeout_while(all, super::TEST_TIMEOUT, |all| silent(all).is_none()).unwrap();
        start + silent(&all).expect("a connection that carried nothing")
    }
}

/// Transfers the pieces for which `pass` returns true.
fn relay(mut from: TcpStream, mut to: TcpStream, pass: impl Fn(&[u8]) -> bool) {
    let mut piece = [0; 16 * 1024];
    while let Ok(length) = from.read(&mut piece) {
        let is_passed = pass(&piece[..length]);
        if length == 0 || is_passed && to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
