//! Who is at the other end of a unix socket, by the kernel's word and not by theirs.
//! Which user of this host is that?

use std::fs;

use super::listen::{ClientSocket, ClientStream};

const USERS: &str = "/etc/passwd";

/// A process of this host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub uid: u32,
    /// As this host knows it; a directory in the network is not asked.
    pub name: Option<String>,
    pub pid: Option<i32>,
}

/// `None`: it came over the network, where nobody vouches for anyone. (unix(7), SO_PEERCRED: as it was when it connected.)
pub fn of(stream: &ClientStream) -> Option<Peer> {
    let ClientSocket::Unix(stream) = stream.socket() else { return None };
    let credentials = stream.peer_cred().ok()?;
    let uid = credentials.uid();
    let users = fs::read_to_string(USERS).unwrap_or_default();
    Some(Peer { uid, name: name(&users, uid), pid: credentials.pid() })
}

/// passwd(5): `name:password:uid:…`
fn name(users: &str, uid: u32) -> Option<String> {
    let user = |line: &str| {
        let mut fields = line.split(':');
        let (name, number) = (fields.next()?, fields.nth(1)?);
        (number.parse() == Ok(uid)).then(|| name.to_owned())
    };
    users.lines().find_map(user)
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn a_user_is_found_by_number() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# a comment\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n";
        assert_eq!(name(users, 0).as_deref(), Some("root"));
        assert_eq!(name(users, 1000).as_deref(), Some("alice"));
        assert_eq!(name(users, 100), None);
    }
}
