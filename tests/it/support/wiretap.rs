//! A relay between a client and outgate that keeps a copy.
//! What did the client really put on the wire, and over how many connections?

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

/// The bytes that one connection has carried so far.
#[derive(Clone, Default)]
pub struct Carried {
    pub sent: Vec<u8>,
    pub received: Vec<u8>,
}

pub struct Wiretap {
    pub address: SocketAddr,
    carried: Arc<(Mutex<Vec<Carried>>, Condvar)>,
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
                    let mut all = carried.0.lock().unwrap();
                    all.push(Carried::default());
                    carried.1.notify_all();
                    all.len() - 1
                };
                let up = (client.try_clone().unwrap(), server.try_clone().unwrap());
                let copy = Arc::clone(&carried);
                std::thread::spawn(move || {
                    relay(up.0, up.1, |piece| copy.0.lock().unwrap()[index].sent.extend_from_slice(piece));
                });
                let copy = Arc::clone(&carried);
                std::thread::spawn(move || {
                    relay(server, client, |piece| copy.0.lock().unwrap()[index].received.extend_from_slice(piece));
                });
            }
        });
        tap
    }

    /// Every connection so far, in order.
    pub fn carried(&self) -> Vec<Carried> {
        self.carried.0.lock().unwrap().clone()
    }

    /// The same, once there are `count`: who connects may hear of it before we do.
    pub fn until(&self, count: usize) -> Vec<Carried> {
        let (all, more) = (self.carried.0.lock().unwrap(), &self.carried.1);
        more.wait_timeout_while(all, super::PATIENCE, |all| all.len() < count).unwrap().0.clone()
    }

    /// The index of the first connection from `start` on over which the client has sent nothing, once there is one.
    pub fn until_silent(&self, start: usize) -> usize {
        let silent = |all: &[Carried]| all.iter().skip(start).position(|one| one.sent.is_empty());
        let (all, more) = (self.carried.0.lock().unwrap(), &self.carried.1);
        let (all, _) = more.wait_timeout_while(all, super::PATIENCE, |all| silent(all).is_none()).unwrap();
        start + silent(&all).expect("a connection that carried nothing")
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
