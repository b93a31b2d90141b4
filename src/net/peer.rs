//! The process at the other end of a unix socket, as the kernel reports it (SO_PEERCRED).
//! Which user of this host is the client?

use std::fs;

use super::listen::{ClientSocket, ClientStream};

const PASSWD_FILE: &str = "/etc/passwd";
/// The users that the process's user namespace knows (user_namespaces(7)).
const UID_MAP_FILE: &str = "/proc/self/uid_map";
/// The name of every user that the namespace lacks: the kernel reports them all with one uid, the overflow uid
/// (user_namespaces(7)).
const UNKNOWN_USER: &str = "unknown (PrivateUsers=yes)";

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
    let is_known = fs::read_to_string(UID_MAP_FILE).map_or(true, |map| is_mapped(&map, uid));
    let name = match is_known {
        true => user_name(&fs::read_to_string(PASSWD_FILE).unwrap_or_default(), uid),
        false => Some(UNKNOWN_USER.to_owned()),
    };
    Some(Peer { uid, name, pid: credentials.pid() })
}

/// Returns whether a user namespace with this map has the uid: each line has the first uid inside, the first outside, and
/// their number.
fn is_mapped(map: &str, uid: u32) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u32>().ok());
        let (first, count) = (numbers.next(), numbers.nth(1));
        first.zip(count).is_some_and(|(first, count)| uid.checked_sub(first).is_some_and(|offset| offset < count))
    })
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
    use super::{is_mapped, user_name};

    #[test]
    fn peer_user_outside_of_the_user_namespace_is_unknown() {
        let (host, service) = ("         0          0 4294967295\n", "0 0 1\n990 990 1\n");
        assert!(is_mapped(host, 65534) && is_mapped(service, 0) && is_mapped(service, 990));
        assert!(!is_mapped(service, 65534) && !is_mapped(service, 1) && !is_mapped("", 0));
    }

    #[test]
    fn peer_user_name_is_found_by_uid() {
        let users = "root:x:0:0:root:/root:/bin/sh\n# a comment\nalice:x:1000:1000::/home/alice:/bin/sh\nbroken\n";
        assert_eq!(user_name(users, 0).as_deref(), Some("root"));
        assert_eq!(user_name(users, 1000).as_deref(), Some("alice"));
        assert_eq!(user_name(users, 100), None);
    }
}
