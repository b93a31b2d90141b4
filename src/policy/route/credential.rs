//! The check of a route's credential against the other settings of the route.
//! Which targets could receive this credential?

use std::sync::Arc;

use crate::config::WarningCode;
use crate::config::{self, ConnectPolicy, PlaintextPolicy, Problem, VerifyMode};
use crate::policy::credential::Credential;
use crate::policy::sign::Signer;
use crate::policy::trust::Trust;

pub(super) fn check(
    credential: &Credential,
    written: &config::Route,
    signers: &[&Arc<Signer>],
    trust: Option<&Arc<Trust>>,
    problems: &mut Vec<Problem>,
) {
    let Some(place) = written.credential.as_ref().map(|name| name.span) else { return };
    let (name, header) = (&credential.name, &credential.header);
    if let Some(signer) = signers.iter().find(|signer| signer.headers().contains(header)) {
        let message = format!("the credential {name} and the signer {} write the same header, {header}", signer.name());
        problems.push(Problem::at(place, message).help("give the credential or the signer another header"));
    }
    if written.plaintext.value == PlaintextPolicy::Allow {
        let problem = if credential.allows_plaintext {
            let message = format!("the credential {name} may be sent in plaintext, and anyone on the path can read it");
            Problem::warning(WarningCode::CredentialInPlaintext, Some(place), message)
                .help("write \"upgrade\" to send the same requests over TLS")
        } else {
            let message =
                format!("the credential {name} would be sent in plaintext, and anyone on the path could read it");
            let help =
                "write plaintext = \"upgrade\" or \"refuse\" here, or plaintext = \"allow\" at the credential, too";
            Problem::at(place, message).help(help)
        };
        problems.push(problem.related(written.plaintext.span, "this setting is the reason"));
    }
    if trust.is_some_and(|trust| trust.verify == VerifyMode::None) {
        let message = format!(
            "outgate sends the credential {name} to any server that responds: the trust of this route verifies no \
             certificate"
        );
        problems.push(
            Problem::warning(WarningCode::CredentialUnverified, Some(place), message)
                .help("write verify = \"full\" in the trust of this route"),
        );
    }
    if written.hosts.iter().any(|host| host.value == "*") {
        let message = format!("outgate sends the credential {name} to every host that receives a webhook");
        let help = "write the hosts that need the credential: every receiver on this route learns it";
        problems.push(Problem::warning(WarningCode::CredentialEverywhere, Some(place), message).help(help));
    }
    let tunnel = written.connect.as_ref().filter(|connect| connect.value == ConnectPolicy::Tunnel);
    if let Some(connect) = tunnel {
        let message = "outgate adds no credential inside a tunnel";
        let help = "write \"inspect\" to add it to requests inside tunnels, or \"refuse\" so that clients send \
                    requests without a tunnel, to which outgate adds it";
        problems.push(Problem::warning(WarningCode::TunnelUnsigned, Some(connect.span), message).help(help));
    }
}
