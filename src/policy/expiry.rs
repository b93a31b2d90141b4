//! The ends of what stands in files: certificates, authorities, revocation lists.
//! What runs out soon, and whom will that hurt?

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::anchors::{self, Purpose};
use crate::config::WarningCode;
use crate::config::{Config, CrlPolicy, Located, PemFile, Problem, Roots, SourceSpan};

/// Who renews by hand needs this long; an authority of our own must reach our clients first.
const SOON: SignedDuration = SignedDuration::from_hours(14 * 24);
const SOON_FOR_AUTHORITY: SignedDuration = SignedDuration::from_hours(30 * 24);

/// What is short-lived is renewed later: with this part of its life left, something has gone wrong.
const LAST_PART: i32 = 4;

/// What a certificate or list is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertificateUse {
    Listener,
    ClientCa,
    ClientCrl,
    Ca,
    Identity,
    Roots,
    /// In `roots` or `client_ca`, but no authority.
    DirectlyTrusted(Purpose),
    Intermediates,
    Crl(CrlPolicy),
}

impl CertificateUse {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::ClientCa | Self::DirectlyTrusted(Purpose::Clients) => "client_ca",
            Self::ClientCrl => "client_crl",
            Self::Ca => "ca",
            Self::Identity => "identity",
            Self::Roots | Self::DirectlyTrusted(Purpose::Servers) => "roots",
            Self::Intermediates => "intermediates",
            Self::Crl(_) => "crl",
        }
    }

    /// And then?
    fn consequence(self) -> &'static str {
        match self {
            Self::Listener => "no client will believe it",
            Self::Identity => "no target will believe it",
            Self::Ca => "no tunnel can be inspected",
            Self::DirectlyTrusted(_) => "peers that show it are refused",
            Self::Intermediates => "no path leads through it",
            // RFC 5280 §6.1.1 (d): of an anchor the name and the key count, not its dates.
            Self::ClientCa | Self::Roots => "what it issued counts all the same",
            Self::Crl(CrlPolicy::Require) => "targets that it speaks for are refused",
            Self::ClientCrl | Self::Crl(CrlPolicy::Lenient) => "until there is another, this one counts",
        }
    }
}

/// One certificate, the one of a chain that ends first, or one list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expiry {
    pub usage: CertificateUse,
    /// The trust policy that it belongs to; empty for the listener's.
    pub trust: String,
    pub path: PathBuf,
    /// Counted from 1 in a file of several that are none another's chain.
    number: Option<usize>,
    from: i64,
    pub ends: Timestamp,
    soon: SignedDuration,
}

/// Every certificate and list that a file of the configuration holds; those that need care are warned about.
pub fn compile(config: &Config, now: Timestamp, problems: &mut Vec<Problem>) -> Vec<Expiry> {
    let mut all = ExpiryCollector(Vec::new());
    for tls in config.server.all_tls() {
        all.chain(CertificateUse::Listener, "", &tls.certificate);
        tls.client_ca.iter().for_each(|ca| all.authorities(CertificateUse::ClientCa, Purpose::Clients, "", ca));
        tls.client_crls.iter().for_each(|list| all.each(CertificateUse::ClientCrl, "", list, life_of_list));
    }
    config.server.ca.iter().for_each(|ca| all.chain(CertificateUse::Ca, "", &ca.certificate));
    for (name, trust) in &config.trust {
        let name = name.as_str();
        for roots in &trust.roots {
            if let Roots::File(path, parts) = &roots.value {
                let file = PemFile { path: path.clone(), parts: parts.clone() };
                let file = Located { value: file, span: roots.span };
                all.authorities(CertificateUse::Roots, Purpose::Servers, name, &file);
            }
        }
        let intermediates = &trust.intermediates;
        intermediates.iter().for_each(|file| all.each(CertificateUse::Intermediates, name, file, life_of_certificate));
        let usage = CertificateUse::Crl(trust.crl_policy());
        trust.crls.iter().for_each(|list| all.each(usage, name, list, life_of_list));
        trust.identity.iter().for_each(|identity| all.chain(CertificateUse::Identity, name, &identity.certificate));
    }
    for (place, expiry) in &all.0 {
        // That our own authority has ended is a problem, and said where it is compiled.
        let is_said = expiry.usage == CertificateUse::Ca && expiry.ends < now;
        if let Some(message) = expiry.warning(now).filter(|_| !is_said) {
            problems.push(Problem::warning(WarningCode::ExpiresSoon, Some(*place), message).help(expiry.help()));
        }
    }
    all.0.into_iter().map(|(_, expiry)| expiry).collect()
}

impl Expiry {
    /// What there is to say about it now, if anything.
    pub fn warning(&self, now: Timestamp) -> Option<String> {
        let (what, ends, then) = (self.what(), self.ends, self.usage.consequence());
        let is_list = matches!(self.usage, CertificateUse::Crl(_) | CertificateUse::ClientCrl);
        if ends < now {
            Some(match is_list {
                true => format!("{what} is out of date since {ends}: {then}"),
                false => format!("{what} has expired at {ends}: {then}"),
            })
        } else if self.is_soon(now) {
            Some(format!("{what} {} at {ends}", if is_list { "will be out of date" } else { "expires" }))
        } else if self.from > now.as_second() && is_list {
            Some(format!("{what} has a thisUpdate in the future: it is ignored until then"))
        } else if self.from > now.as_second() {
            Some(format!("{what} is not valid yet: {then}"))
        } else {
            None
        }
    }

    fn is_soon(&self, now: Timestamp) -> bool {
        self.ends.duration_since(now) < self.soon
    }

    fn what(&self) -> String {
        let path = self.path.display();
        match (self.usage, self.number) {
            (CertificateUse::ClientCrl | CertificateUse::Crl(_), number) => {
                format!("revocation list {} of {path}", number.unwrap_or(1))
            }
            (CertificateUse::Ca, _) => format!("the authority in {path}"),
            (_, Some(number)) => format!("certificate {number} of {path}"),
            (_, None) => format!("the certificate in {path}"),
        }
    }

    fn help(&self) -> &'static str {
        match self.usage {
            CertificateUse::Ca => "clients need to trust the next one before: `outgate ca new`",
            CertificateUse::Roots | CertificateUse::ClientCa => {
                "add its successor to the file; remove this one when no peer uses it any more"
            }
            _ => "put a new one in its place: it is taken up at once",
        }
    }
}

struct ExpiryCollector(Vec<(SourceSpan, Expiry)>);

impl ExpiryCollector {
    /// A chain ends with its first certificate that does.
    fn chain(&mut self, usage: CertificateUse, trust: &str, file: &Located<PemFile>) {
        let lives: Vec<_> = file.parts.iter().filter_map(|der| life_of_certificate(der)).collect();
        let from = lives.iter().map(|(from, _)| *from).max();
        let until = lives.iter().map(|(_, until)| *until).min();
        if let (Some(from), Some(until)) = (from, until) {
            self.add(usage, trust, file, None, (from, until));
        }
    }

    fn each(
        &mut self,
        usage: CertificateUse,
        trust: &str,
        file: &Located<PemFile>,
        life: fn(&[u8]) -> Option<(i64, i64)>,
    ) {
        for (index, life) in file.parts.iter().enumerate().filter_map(|(index, der)| Some((index, life(der)?))) {
            self.add(usage, trust, file, Some(index + 1), life);
        }
    }

    /// What stands among authorities, and is one or not.
    fn authorities(&mut self, usage: CertificateUse, purpose: Purpose, trust: &str, file: &Located<PemFile>) {
        for (index, der) in file.parts.iter().enumerate() {
            let Some(life) = life_of_certificate(der) else { continue };
            let usage =
                if anchors::is_authority(der, purpose) { usage } else { CertificateUse::DirectlyTrusted(purpose) };
            self.add(usage, trust, file, Some(index + 1), life);
        }
    }

    fn add(
        &mut self,
        usage: CertificateUse,
        trust: &str,
        file: &Located<PemFile>,
        number: Option<usize>,
        life: (i64, i64),
    ) {
        let (from, until) = life;
        let most = if usage == CertificateUse::Ca { SOON_FOR_AUTHORITY } else { SOON };
        let part = SignedDuration::from_secs(until.saturating_sub(from)) / LAST_PART;
        // RFC 5280 §4.1.2.5: the last date there is says "does not expire", and is beyond what a `Timestamp` holds.
        let ends = Timestamp::from_second(until).unwrap_or(Timestamp::MAX);
        let path = file.path.clone();
        let expiry = Expiry { usage, trust: trust.to_owned(), path, number, from, ends, soon: most.min(part) };
        self.0.push((file.span, expiry));
    }
}

/// From when until when, in seconds; what cannot be read is a problem elsewhere.
fn life_of_certificate(der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some((certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()))
}

fn life_of_list(der: &[u8]) -> Option<(i64, i64)> {
    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
    Some((list.last_update().timestamp(), list.next_update()?.timestamp()))
}
