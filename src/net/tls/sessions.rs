//! The TLS sessions that outgate may resume with targets, bounded in number.
//! Which session does a handshake with this host resume?
//!
//! rustls has such a store, with eight tickets for a host. A TLS 1.3 ticket serves one connection (RFC 8446, appendix C.4):
//! of 64 connections to one host that begin together, 56 would need a full handshake.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;

use crate::lru::LruCache;
use crate::net::ticket_meter::TicketMeter;
use crate::panics::Mutex;

/// The largest number of tickets of one host.
const TICKETS_PER_HOST_MAX: usize = 64;

/// The largest ticket that is stored, in bytes. Those of servers have a few hundred, or some thousand with a client's certificate.
const TICKET_LEN_MAX: usize = 16 * 1024;

/// A store of at most `capacity` sessions. The sessions of the least recently used hosts give way to new ones.
pub(super) struct SessionStore {
    hosts: Mutex<Hosts>,
    capacity: usize,
}

struct Hosts {
    by_name: LruCache<ServerName<'static>, HostSessions>,
    /// The number of sessions of all hosts.
    sessions: usize,
}

#[derive(Default)]
struct HostSessions {
    key_exchange: Option<NamedGroup>,
    tls12: Option<Tls12ClientSessionValue>,
    /// Tickets of TLS 1.3, oldest first.
    tickets: VecDeque<Tls13ClientSessionValue>,
}

impl SessionStore {
    pub(super) fn new(capacity: usize) -> Self {
        Self { hosts: Mutex::new(Hosts { by_name: LruCache::new(capacity), sessions: 0 }), capacity }
    }

    /// Changes the sessions of a host, and makes it the most recently used.
    fn edit(&self, name: ServerName<'static>, edit: impl FnOnce(&mut HostSessions)) {
        let hosts = &mut *self.hosts.lock();
        if hosts.by_name.peek(&name).is_none()
            && let Some((_, evicted)) = hosts.by_name.insert(name.clone(), HostSessions::default())
        {
            hosts.sessions -= evicted.len();
        }
        hosts.with(&name, edit);
        while hosts.sessions > self.capacity
            && let Some((_, evicted)) = hosts.by_name.pop_oldest()
        {
            hosts.sessions -= evicted.len();
        }
    }

    /// Uses the sessions of a host, if it has any.
    fn find<T>(&self, name: &ServerName<'static>, find: impl FnOnce(&mut HostSessions) -> Option<T>) -> Option<T> {
        self.hosts.lock().with(name, find)?
    }
}

impl Hosts {
    /// Gives the sessions of a host to `f`, and counts what `f` adds and takes.
    fn with<T>(&mut self, name: &ServerName<'static>, f: impl FnOnce(&mut HostSessions) -> T) -> Option<T> {
        let host = self.by_name.get(name)?;
        self.sessions -= host.len();
        let result = f(host);
        self.sessions += host.len();
        Some(result)
    }
}

impl HostSessions {
    fn len(&self) -> usize {
        self.tickets.len() + usize::from(self.tls12.is_some())
    }
}

impl ClientSessionStore for SessionStore {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.edit(name, |host| host.key_exchange = Some(group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.find(&name.to_owned(), |host| host.key_exchange)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.edit(name, |host| host.tls12 = Some(session));
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.find(&name.to_owned(), |host| host.tls12.clone())
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.find(name, |host| host.tls12.take());
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.edit(name, |host| {
            if host.tickets.len() >= TICKETS_PER_HOST_MAX {
                host.tickets.pop_front();
            }
            host.tickets.push_back(ticket);
        });
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.find(name, |host| host.tickets.pop_back())
    }
}

/// The sessions as one connection sees them.
pub(super) struct ConnectionSessions {
    /// `None`: no session is stored.
    pub(super) store: Option<Arc<SessionStore>>,
    pub(super) tickets: Arc<TicketMeter>,
}

impl fmt::Debug for ConnectionSessions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ConnectionSessions").field(&self.store).finish()
    }
}

impl ClientSessionStore for ConnectionSessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.store.iter().for_each(|store| store.set_kx_hint(name.clone(), group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.store.as_ref()?.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.store.iter().for_each(|store| store.set_tls12_session(name.clone(), session.clone()));
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.store.as_ref()?.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.store.iter().for_each(|store| store.remove_tls12_session(name));
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        let length_max = self.tickets.add_ticket();
        if let Some(store) = self.store.as_ref().filter(|_| length_max <= TICKET_LEN_MAX) {
            store.insert_tls13_ticket(name, ticket);
        }
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.store.as_ref()?.take_tls13_ticket(name)
    }
}

impl fmt::Debug for SessionStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionStore").field("sessions", &self.hosts.lock().sessions).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use rustls::crypto::aws_lc_rs;
    use rustls::{
        ClientConfig, ClientConnection, HandshakeKind, RootCertStore, ServerConfig, ServerConnection,
        SupportedProtocolVersion, version,
    };
    use rustls_pki_types::PrivateKeyDer;

    use super::*;

    /// A client with the store, and a server for the hosts `a` to `c` that issues two tickets in a handshake.
    struct Scene {
        store: Arc<SessionStore>,
        client: Arc<ClientConfig>,
        server: Arc<ServerConfig>,
    }

    impl Scene {
        fn new(capacity: usize, version: &'static SupportedProtocolVersion) -> Self {
            let rcgen::CertifiedKey { cert, signing_key } =
                rcgen::generate_simple_self_signed(["a", "b", "c"].map(String::from)).unwrap();
            let mut roots = RootCertStore::empty();
            roots.add(cert.der().clone()).unwrap();
            let provider = Arc::new(aws_lc_rs::default_provider());
            let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
            let store = Arc::new(SessionStore::new(capacity));
            client.resumption = rustls::client::Resumption::store(Arc::clone(&store) as _);
            let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
            let server = ServerConfig::builder_with_provider(provider)
                .with_protocol_versions(&[version])
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![cert.der().clone()], key)
                .unwrap();
            Self { store, client: Arc::new(client), server: Arc::new(server) }
        }

        /// Returns `true` if the handshake with this host resumes a session.
        fn resumes(&self, host: &'static str) -> bool {
            let mut client =
                ClientConnection::new(Arc::clone(&self.client), ServerName::try_from(host).unwrap()).unwrap();
            let mut server = ServerConnection::new(Arc::clone(&self.server)).unwrap();
            while client.wants_write() || server.wants_write() {
                let mut bytes = Vec::new();
                while client.wants_write() {
                    client.write_tls(&mut bytes).unwrap();
                }
                server.read_tls(&mut bytes.as_slice()).unwrap();
                server.process_new_packets().unwrap();
                let mut bytes = Vec::new();
                while server.wants_write() {
                    server.write_tls(&mut bytes).unwrap();
                }
                client.read_tls(&mut bytes.as_slice()).unwrap();
                client.process_new_packets().unwrap();
            }
            assert!(!client.is_handshaking() && !server.is_handshaking());
            client.handshake_kind() == Some(HandshakeKind::Resumed)
        }

        fn sessions(&self) -> usize {
            let hosts = self.store.hosts.lock();
            assert!(hosts.sessions <= self.store.capacity);
            hosts.sessions
        }
    }

    #[test]
    fn large_ticket_is_not_stored() {
        let mut scene = Scene::new(8, &version::TLS13);
        for (length, stored) in [(TICKET_LEN_MAX, 2), (TICKET_LEN_MAX + 1, 1)] {
            let (store, tickets) = (Arc::new(SessionStore::new(8)), Arc::new(TicketMeter::default()));
            let sessions = ConnectionSessions { store: Some(Arc::clone(&store)), tickets: Arc::clone(&tickets) };
            Arc::make_mut(&mut scene.client).resumption = rustls::client::Resumption::store(Arc::new(sessions));
            tickets.add_bytes(length); // the first ticket may have as many
            tickets.add_bytes(0);
            assert!(!scene.resumes("a"));
            assert_eq!(store.hosts.lock().sessions, stored);
        }
    }

    #[test]
    fn session_store_drops_the_host_that_was_used_least_recently() {
        let scene = Scene::new(5, &version::TLS13);
        assert!(!scene.resumes("a") && !scene.resumes("b"));
        assert_eq!(scene.sessions(), 4);
        assert!(scene.resumes("a"));
        assert_eq!(scene.sessions(), 5, "one used, two new");
        assert!(!scene.resumes("c"));
        assert_eq!(scene.sessions(), 5, "the two of b gave way");
        assert!(scene.resumes("a") && !scene.resumes("b"));
    }

    #[test]
    fn session_store_bounds_the_tickets_of_a_host() {
        let scene = Scene::new(1000, &version::TLS13);
        assert!(!scene.resumes("a"));
        for _ in 0..2 * TICKETS_PER_HOST_MAX {
            assert!(scene.resumes("a"));
        }
        assert_eq!(scene.sessions(), TICKETS_PER_HOST_MAX);
    }

    #[test]
    fn session_store_smaller_than_one_handshake_stays_within_its_bound() {
        let scene = Scene::new(1, &version::TLS13);
        for host in ["a", "b", "a", "a"] {
            scene.resumes(host);
            assert!(scene.sessions() <= 1);
        }
    }

    /// A session of TLS 1.2 serves many connections.
    #[test]
    fn session_store_keeps_one_session_of_tls12() {
        let scene = Scene::new(2, &version::TLS12);
        assert!(!scene.resumes("a"));
        assert!((0..5).all(|_| scene.resumes("a")));
        assert_eq!(scene.sessions(), 1);
        assert!(!scene.resumes("b") && !scene.resumes("c") && !scene.resumes("a"));
        assert_eq!(scene.sessions(), 2);
    }
}
