//! The connection of a client, with the evidence that TLS or a CONNECT established on it.
//! Which client may send requests on this connection?

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustls_pki_types::CertificateDer;

use super::{ANONYMOUS, ASSERTED};
use crate::config::{AuthMethod, Listen};
use crate::names::{ClientName, Target, TenantName};

/// The client's connection, as far as it identifies the client.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    pub(super) address: Option<IpAddr>,
    listen: Option<Arc<Listen>>,
    pub(super) peer_certificate: PeerCertificate,
    pub(super) tunnel: Option<TunnelContext>,
    pub(super) asserted: Option<ClientName>,
    /// Whether a request on the connection was authenticated. All clones share the flag.
    is_authenticated: Arc<AtomicBool>,
}

impl Caller {
    /// Creates the caller of a connection to this listener.
    pub fn on_listener(listen: Arc<Listen>) -> Self {
        Self { listen: Some(listen), ..Self::default() }
    }

    /// Creates a caller without a connection: an operator's command asserts the client. An operator can read the
    /// configuration and needs no proxy for what the client may do. `tests/it/architecture/rules.rs` limits the uses.
    pub fn by_operator(client: ClientName) -> Self {
        Self { asserted: Some(client), ..Self::default() }
    }

    /// Sets the client's address, which the PROXY protocol may report. `None` on a unix socket, which has no network.
    pub fn with_address(self, address: Option<IpAddr>) -> Self {
        Self { address, ..self }
    }

    /// Sets the client certificate that TLS verified.
    pub fn with_certificate(self, peer_certificate: PeerCertificate) -> Self {
        Self { peer_certificate, ..self }
    }

    /// Creates the caller of the requests inside a tunnel on this connection.
    pub fn in_tunnel(&self, tunnel: TunnelContext) -> Self {
        Self { tunnel: Some(tunnel), ..self.clone() }
    }

    /// Returns the client's address; `None` on a unix socket.
    pub fn address(&self) -> Option<IpAddr> {
        self.address
    }

    /// Returns the listener that accepted the connection.
    pub fn listen(&self) -> Option<&Listen> {
        self.listen.as_deref()
    }

    pub fn peer_certificate(&self) -> &PeerCertificate {
        &self.peer_certificate
    }

    /// Returns the tunnel that carries the requests, if any.
    pub fn tunnel(&self) -> Option<&TunnelContext> {
        self.tunnel.as_ref()
    }

    /// Records that a request on this connection was authenticated.
    pub fn set_authenticated(&self) {
        self.is_authenticated.store(true, Ordering::Relaxed);
    }

    pub fn is_authenticated(&self) -> bool {
        self.is_authenticated.load(Ordering::Relaxed)
    }

    /// Returns the recorded label of an unauthenticated caller.
    pub fn unauthenticated_label(&self) -> &'static str {
        if self.asserted.is_some() { ASSERTED } else { ANONYMOUS }
    }
}

/// The client certificate that a TLS handshake verified; empty without one. Only `net::tls` creates it.
#[derive(Clone, Debug, Default)]
pub struct PeerCertificate {
    pub(super) names: Vec<String>,
    chain: Vec<CertificateDer<'static>>,
    listener_fingerprint: [u8; 32],
    valid_until: i64,
}

impl PeerCertificate {
    /// Creates the certificate of a completed handshake, the leaf of the chain first. `listener_fingerprint` is that of
    /// the TLS settings that verified the chain. `valid_until` is the last second, since 1970, in which all of the chain
    /// is valid.
    pub fn from_handshake(
        names: Vec<String>,
        chain: Vec<CertificateDer<'static>>,
        listener_fingerprint: [u8; 32],
        valid_until: i64,
    ) -> Self {
        Self { names, chain, listener_fingerprint, valid_until }
    }

    /// Returns the chain, the leaf first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// Returns the fingerprint of the listener's TLS settings that verified the chain.
    pub fn listener_fingerprint(&self) -> [u8; 32] {
        self.listener_fingerprint
    }

    /// Returns the last second, since 1970, in which the whole chain is valid.
    pub fn valid_until(&self) -> i64 {
        self.valid_until
    }
}

/// The decisions of an accepted CONNECT, which hold for every request inside its tunnel. Only `delivery::tunnel` creates
/// it.
#[derive(Clone, Debug)]
pub struct TunnelContext {
    pub(super) client: ClientName,
    pub(super) proof: Option<AuthMethod>,
    tenant: Option<TenantName>,
    target: Target,
}

impl TunnelContext {
    /// Creates the context of a CONNECT that was authenticated and routed.
    pub fn after_connect(
        client: ClientName,
        proof: Option<AuthMethod>,
        tenant: Option<TenantName>,
        target: Target,
    ) -> Self {
        Self { client, proof, tenant, target }
    }

    pub fn tenant(&self) -> Option<&TenantName> {
        self.tenant.as_ref()
    }

    pub fn target(&self) -> &Target {
        &self.target
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::{Host, Scheme};

    #[test]
    fn caller_states_what_its_connection_established() {
        let listen = Listen::Tcp(([127, 0, 0, 1], 4750).into());
        let chain = vec![CertificateDer::from(vec![1]), CertificateDer::from(vec![2])];
        let certificate = PeerCertificate::from_handshake(vec!["a.example".into()], chain.clone(), [7; 32], 1234);
        let address = IpAddr::from([192, 0, 2, 1]);
        let caller =
            Caller::on_listener(Arc::new(listen.clone())).with_address(Some(address)).with_certificate(certificate);
        assert_eq!((caller.listen(), caller.address()), (Some(&listen), Some(address)));
        let presented = caller.peer_certificate();
        assert_eq!(
            (presented.chain(), presented.listener_fingerprint(), presented.valid_until()),
            (&*chain, [7; 32], 1234)
        );
        assert!(caller.tunnel().is_none());
        assert_eq!((Caller::default().listen(), Caller::default().address()), (None, None));
        assert!(Caller::default().peer_certificate().chain().is_empty());
    }

    fn in_tunnel(caller: &Caller, tenant: Option<&TenantName>) -> Caller {
        caller.in_tunnel(TunnelContext::after_connect(ClientName::new("a"), None, tenant.cloned(), target()))
    }

    fn target() -> Target {
        Target { scheme: Scheme::Https, host: Host::Name("hooks.acme.example".into()), port: 443 }
    }

    #[test]
    fn caller_in_a_tunnel_keeps_its_connection_and_has_the_decisions_of_the_connect() {
        let caller = Caller::default().with_address(Some(IpAddr::from([192, 0, 2, 1])));
        for tenant in [None, Some(TenantName::new("acme"))] {
            let inside = in_tunnel(&caller, tenant.as_ref());
            let tunnel = inside.tunnel().unwrap();
            assert_eq!(inside.address(), caller.address());
            assert_eq!((tunnel.tenant(), tunnel.target()), (tenant.as_ref(), &target()));
        }
    }

    /// The peer of a connection is no stranger once a request in a tunnel on it was authenticated.
    #[test]
    fn caller_is_authenticated_with_the_requests_in_its_tunnels() {
        let (caller, other) = (Caller::default(), Caller::default());
        let inside = in_tunnel(&caller, None);
        assert!(!caller.is_authenticated() && !inside.is_authenticated());
        inside.set_authenticated();
        assert!(caller.is_authenticated() && inside.is_authenticated());
        assert!(!other.is_authenticated());
    }

    #[test]
    fn caller_without_a_proof_is_anonymous_or_stated_by_an_operator() {
        assert_eq!(Caller::default().unauthenticated_label(), "anonymous");
        assert_eq!(Caller::by_operator(ClientName::new("a")).unauthenticated_label(), "stated");
    }
}
