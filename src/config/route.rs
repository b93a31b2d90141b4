//! A route as it is written.
//! Which settings may a route have?

use super::{ClientConnections, Located, PathForm, ResponseHeadMax, RouteMetrics, RouteTimeouts};

#[derive(Clone, Debug)]
pub struct Route {
    pub name: Located<String>,
    /// `hooks.acme.example`, `*.acme.example`, `*`, or an address; as written.
    pub hosts: Vec<Located<String>>,
    pub paths: Vec<Located<String>>,
    /// Ports that the route allows in addition to `guard.ports`.
    pub ports: Vec<Located<u16>>,
    pub tenants: Vec<Located<String>>,
    pub clients: Vec<Located<String>>,
    pub egress: Option<Located<String>>,
    pub trust: Option<Located<String>>,
    pub sign: Vec<Located<String>>,
    pub credential: Option<Located<String>>,
    pub limits: Vec<Located<String>>,
    pub plaintext: Located<PlaintextPolicy>,
    /// `None`: a tunnel, unless the route signs or has a credential.
    pub connect: Option<Located<ConnectPolicy>>,
    pub interim: InterimPolicy,
    /// Bytes.
    pub body_max: Option<Located<u64>>,
    pub response_max: Option<Located<u64>>,
    pub response_head_max: ResponseHeadMax,
    pub client_connections: ClientConnections,
    pub metrics: Located<RouteMetrics>,
    pub timeouts: RouteTimeouts,
    /// The form in which paths are written; `None`: that of `redact`.
    pub path_form: Option<PathForm>,
    /// A different route for a share of the tenants and hosts.
    pub split: Option<Located<Split>>,
    /// Whether the route is only evaluated and reported, and never taken.
    pub report_only: bool,
}

impl Route {
    /// Returns a route that matches nothing yet, with every setting at its default.
    pub fn new(name: Located<String>) -> Self {
        let span = name.span;
        Self {
            name,
            hosts: Vec::new(),
            paths: Vec::new(),
            ports: Vec::new(),
            tenants: Vec::new(),
            clients: Vec::new(),
            egress: None,
            trust: None,
            sign: Vec::new(),
            credential: None,
            limits: Vec::new(),
            plaintext: Located { value: PlaintextPolicy::Refuse, span },
            connect: None,
            interim: InterimPolicy::default(),
            body_max: None,
            response_max: None,
            response_head_max: ResponseHeadMax::default(),
            client_connections: ClientConnections::default(),
            metrics: Located { value: RouteMetrics::Shared, span },
            timeouts: RouteTimeouts::default(),
            path_form: None,
            split: None,
            report_only: false,
        }
    }
}

/// A share of a route's tenants and hosts, with other settings.
#[derive(Clone, Debug)]
pub struct Split {
    /// The share in hundredths of a percent: 10,000 is all.
    pub share: u32,
    /// The route for this share.
    pub route: Box<Route>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PlaintextPolicy {
    Refuse,
    Upgrade,
    Allow,
}

/// Which clients get the target's interim responses (1xx).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterimPolicy {
    /// Clients over HTTP/2. Many HTTP/1.1 clients take 103 for the final response.
    #[default]
    Http2,
    /// Every client whose version of HTTP has interim responses.
    Forward,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectPolicy {
    Tunnel,
    Inspect,
    Refuse,
}
