//! Connections to targets that are kept for other deliveries, where there are more than may be kept.
//! Which of them goes, and does one client push out those of another?

mod support;

use aws_lc_rs::digest::{SHA256, digest};
use support::pki::Pki;
use support::receiver::{Receiver, ok};
use support::scene::{config, folder};
use support::{Outgate, post};

/// Connections that this limit of file descriptors lets outgate keep: a quarter of what the reserve of 256 leaves.
const KEPT: usize = 8;
const FILES: u32 = 256 + 4 * KEPT as u32;

struct Place {
    outgate: Outgate,
    plain: Receiver,
}

fn place() -> Place {
    let plain = Receiver::plain(ok());
    let client = |name: &str| {
        let hash: String = digest(&SHA256, name.as_bytes()).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("[clients.{name}]\ntokens = [\"sha256:{hash}\"]\ntenants = [\"*\"]\n")
    };
    let text = config(&plain, &plain, &(client("quiet") + &client("busy")));
    let text = text.replace("allow_anonymous = true", "allow_anonymous = false");
    Place { outgate: Outgate::run_limited(folder(&Pki::new()), &text, FILES), plain }
}

impl Place {
    /// Whether a delivery went over a connection that was kept: one is kept for each client and tenant.
    fn is_reused(&self, client: &str, tenant: usize) -> bool {
        let before = self.plain.connections();
        let url = format!("http://plain.example:{}/in", self.plain.port());
        let fields =
            format!("Proxy-Authorization: Bearer {client}\r\nOutgate-Tenant: t{tenant}\r\nConnection: close\r\n");
        let mut connection = self.outgate.connect();
        connection.send(post(&url, &fields, "x"));
        assert_eq!(connection.answer().status, 200);
        // The connection is back when the client's has ended.
        assert!(connection.is_closed());
        self.plain.connections() == before
    }
}

#[test]
fn kept_connections_evict_the_least_recently_used_for_a_new_one() {
    let place = place();
    for tenant in 0..KEPT {
        assert!(!place.is_reused("busy", tenant));
    }
    assert!(place.is_reused("busy", 0), "all are kept");
    assert!(!place.is_reused("busy", KEPT));
    assert!(place.is_reused("busy", KEPT), "a new one is kept");
    assert!(place.is_reused("busy", 0), "and evicts none that was used lately");
    assert!(!place.is_reused("busy", 1), "but the least recently used");
}

#[test]
fn kept_connections_of_one_client_leave_others_their_share() {
    let place = place();
    for tenant in 0..3 {
        assert!(!place.is_reused("quiet", tenant));
    }
    for tenant in 0..3 * KEPT {
        assert!(!place.is_reused("busy", tenant));
    }
    for tenant in 0..3 {
        assert!(place.is_reused("quiet", tenant), "of tenant {tenant}");
    }
    assert!(place.is_reused("busy", 3 * KEPT - 1));
}
