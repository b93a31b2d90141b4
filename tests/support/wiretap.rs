//! A relay between a client and outgate that keeps a copy.
//! What did the client really put on the wire, and over how many connections?

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::PATIENCE;

/// What one connection carried so far.
#[derive(Clone, Default)]
pub struct Carried {
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
}

pub struct Wiretap {
    pub address: SocketAddr,
    carried: Arc<Mutex<Vec<Carried>>>,
}

impl Wiretap {
    pub fn before(proxy: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let tap = Self { address: listener.local_addr().unwrap(), carried: Arc::default() };
        let carried = Arc::clone(&tap.carried);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = TcpStream::connect(proxy) else { return };
                let index = {
                    let mut all = carried.lock().unwrap();
                    all.push(Carried::default());
                    all.len() - 1
                };
                let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let copy = Arc::clone(&carried);
                std::thread::spawn(move || {
                    relay(up.0, up.1, |piece| copy.lock().unwrap()[index].sent.extend_from_slice(piece));
                });
                let copy = Arc::clone(&carried);
                std::thread::spawn(move || {
                    relay(server, client, |piece| copy.lock().unwrap()[index].received.extend_from_slice(piece));
                });
            }
        });
        tap
    }

    /// Every connection, in order, once there are as many as that. What connects does not wait to be accepted.
    pub fn until(&self, count: usize) -> Vec<Carried> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let carried = self.carried();
            if carried.len() >= count {
                return carried;
            }
            assert!(Instant::now() < deadline, "{} of {count} connections", carried.len());
            std::thread::yield_now();
        }
    }

    /// Every connection so far, in order.
    pub fn carried(&self) -> Vec<Carried> {
        self.carried.lock().unwrap().clone()
    }
}

fn relay(mut from: TcpStream, mut to: TcpStream, copy: impl Fn(&[u8])) {
    let mut piece = [0; 16 * 1024];
    while let Ok(length) = from.read(&mut piece) {
        copy(&piece[..length]);
        if length == 0 || to.write_all(&piece[..length]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
    let _ = from.shutdown(Shutdown::Read);
}
