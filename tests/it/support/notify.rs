//! The notifications of a service to systemd.
//! Which notifications does outgate send?

use std::os::unix::net::UnixDatagram;
use std::path::Path;

use super::TEST_TIMEOUT;

/// The socket to which a service of systemd sends its notifications (sd_notify(3)).
pub struct NotifySocket(pub UnixDatagram);

impl NotifySocket {
    pub fn bind(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        socket.set_read_timeout(Some(TEST_TIMEOUT)).unwrap();
        Self(socket)
    }

    /// Waits for a message with a line that starts so. Skips earlier messages.
    pub fn wait_for(&self, start: &str) -> String {
        loop {
            let mut bytes = [0; 1024];
            let length = self.0.recv(&mut bytes).unwrap_or_else(|error| panic!("no {start}: {error}"));
            let message = String::from_utf8(bytes[..length].to_vec()).unwrap();
            if message.lines().any(|line| line.starts_with(start)) {
                return message;
            }
        }
    }
}
