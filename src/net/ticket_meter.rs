//! Counts the session tickets that a target sends on one connection.
//! Is the target flooding the connection with tickets, and how large may a ticket be?
//!
//! A target may send tickets of TLS 1.3 at any time (RFC 8446 §4.6.1), and rustls processes all that have arrived before it
//! returns. Without a bound, a target that sends nothing else would keep a thread busy forever.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The number of tickets on one connection. Servers send one to four after the handshake, and some more on long connections.
const TICKETS_MAX: usize = 128;

/// The count of the tickets of one connection, which its socket and the store of its sessions share.
#[derive(Debug, Default)]
pub struct TicketMeter {
    tickets: AtomicUsize,
    /// The bytes of the read that had the last ticket, and of all reads since. The next ticket has no more.
    bytes: AtomicUsize,
    /// The bytes of the last read.
    last_read: AtomicUsize,
}

impl TicketMeter {
    /// Counts bytes that were read from the socket.
    pub fn add_bytes(&self, count: usize) {
        self.bytes.fetch_add(count, Ordering::Relaxed);
        self.last_read.store(count, Ordering::Relaxed);
    }

    /// Forgets the bytes of the handshake, which has ended.
    pub fn end_handshake(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }

    /// Counts a ticket. Returns the largest length that it may have, in bytes.
    pub fn add_ticket(&self) -> usize {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        self.bytes.swap(self.last_read.load(Ordering::Relaxed), Ordering::Relaxed)
    }

    /// Returns an error if the target has sent too many tickets: nothing more is read from its connection.
    pub fn check(&self) -> io::Result<()> {
        match self.tickets.load(Ordering::Relaxed) {
            0..=TICKETS_MAX => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "the target sends too many TLS session tickets")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticket_meter_bounds_the_number_of_tickets_and_the_length_of_each() {
        let meter = TicketMeter::default();
        meter.add_bytes(3000);
        meter.add_bytes(200);
        assert_eq!((meter.add_ticket(), meter.add_ticket()), (3200, 200), "both may be in the last read");
        meter.add_bytes(100);
        assert_eq!(meter.add_ticket(), 300);
        meter.end_handshake();
        assert!((3..TICKETS_MAX).all(|_| meter.add_ticket() <= 100));
        assert!(meter.check().is_ok());
        meter.add_ticket();
        assert_eq!(meter.check().unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
