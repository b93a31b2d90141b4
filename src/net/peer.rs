//! The process at the other end of a unix socket, as the kernel reports it (SO_PEERCRED).
//! Which user of this host is the client?

use std::fs;

use super::listen::{ClientSocket, ClientStream};

const PASSWD_FILE: &str = "/etc/passwd";

/// A client process on this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// The user's name in /etc/passwd. Directory services are not queried.
    pub name: Option<String>,
    pub pid: Option<i32>,
}

/// Returns the client's process as it was when it connected (unix(7), SO_PEERCRED); `None`: the client connected over
/// TCP.
#[expect(clippy::disallowed_methods, reason = "the names of this host's users")]
pub fn from_stream(stream: &ClientStream) -> Option<Peer> {
    let ClientSocket::Unix(stream) = stream.socket() else { return None };
    let credentials = stream.peer_cred().ok()?;
    let uid = credentials.uid();
    let users = fs::read_to_string(PASSWD_FILE).unwrap_or_default();
    Some(Peer { uid, name: user_name(&users, uid), pid: credentials.pid() })
}

/// Finds the name of a user in passwd(5): `name:password:uid:…`.
fn user_name(users: &str, uid: u32) -> Option<String> {
    let parse_line = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    };
    users.lines().find_map(parse_line)
}

#[cfg(test)]
mod tests {
    use super::user_name;

    #[test]
    fn peer_user_name_is_found_by_uid() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# a comment\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n";
        assert_eq!(user_name(users, 0).as_deref(), Some("root"));
        assert_eq!(user_name(users, 1000).as_deref(), Some("alice"));
        assert_eq!(user_name(users, 100), None);
    }
}
