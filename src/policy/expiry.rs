//! Expiry times of certificates, authorities and revocation lists in files.
//! Which file expires soon, and what is the consequence?

use std::path::PathBuf;

use jiff::{SignedDuration, Timestamp};
use x509_parser::prelude::{CertificateRevocationList, FromDer, X509Certificate};

use super::anchors::{self, Purpose};
use crate::config::WarningCode;
use crate::config::{Config, CrlPolicy, Located, PemFile, Problem, Roots, SourceSpan, own_tls};

/// The warning time for certificates. Manual renewal takes this long.
const WARN_BEFORE: SignedDuration = SignedDuration::from_hours(14 * 24);
const WARN_BEFORE_CA: SignedDuration = SignedDuration::from_hours(30 * 24);

/// The part of a validity period, as a divisor, that may remain before a short-lived certificate is overdue for
/// renewal.
const WARN_LIFETIME_DIVISOR: i32 = 4;

/// The use of a certificate or revocation list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CertificateUse {
    Listener,
    ClientCa,
    ClientCrl,
    Ca,
    Identity,
    Roots,
    /// A certificate in `roots` or `client_ca` that is no authority.
    DirectlyTrusted(Purpose),
    Intermediates,
    Crl(CrlPolicy),
}

impl CertificateUse {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Listener => "listener",
            Self::ClientCa => "client_ca",
            Self::ClientCrl => "client_crl",
            Self::Ca => "ca",
            Self::Identity => "identity",
            Self::Roots => "roots",
            Self::DirectlyTrusted(_) => "directly_trusted",
            Self::Intermediates => "intermediates",
            Self::Crl(_) => "crl",
        }
    }

    /// Returns the consequence of an expiry.
    fn consequence(self) -> &'static str {
        match self {
            Self::Listener => "clients will not trust it",
            Self::Identity => "targets will not trust it",
            Self::Ca => "outgate cannot inspect tunnels",
            Self::DirectlyTrusted(_) => "outgate refuses peers that present it",
            Self::Intermediates => "outgate builds no certificate path with it",
            // RFC 5280 §6.1.1 (d): an anchor counts by its name and key, not by its dates.
            Self::ClientCa | Self::Roots => "outgate still accepts certificates that it issued",
            Self::Crl(CrlPolicy::Require) => "outgate refuses targets whose certificates it covers",
            Self::ClientCrl | Self::Crl(CrlPolicy::Lenient) => "outgate uses it until the file is replaced",
        }
    }
}

/// The expiry of one certificate, of the first certificate of a chain to expire, or of one revocation list.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Expiry {
    pub usage: CertificateUse,
    /// The trust policy that uses the file; empty for the listener's files.
    pub trust: String,
    pub path: PathBuf,
    /// The position in a file of several independent certificates or lists, from 1.
    number: Option<usize>,
    valid_from: i64,
    pub expires_at: Timestamp,
    warn_before: SignedDuration,
}

/// Returns the expiry of every certificate and list in the configuration's files. Warns about those that need
/// attention.
pub fn compile(config: &Config, now: Timestamp, problems: &mut Vec<Problem>) -> Vec<Expiry> {
    let mut all = ExpiryCollector(Vec::new());
    for tls in config.server.all_tls().chain(own_tls(&config.admin.listen)).chain(own_tls(&config.publish.listen)) {
        all.add_chain(CertificateUse::Listener, "", &tls.certificate);
        tls.client_ca.iter().for_each(|ca| all.add_authorities(CertificateUse::ClientCa, Purpose::Clients, "", ca));
        tls.client_crls.iter().for_each(|list| all.each(CertificateUse::ClientCrl, "", list, crl_validity));
    }
    config.server.ca.iter().for_each(|ca| all.add_chain(CertificateUse::Ca, "", &ca.certificate));
    for (name, trust) in &config.trust {
        let name = name.as_str();
        for roots in &trust.roots {
            if let Roots::File(path, parts) = &roots.value {
                let file = PemFile { path: path.clone(), parts: parts.clone() };
                let file = Located { value: file, span: roots.span };
                all.add_authorities(CertificateUse::Roots, Purpose::Servers, name, &file);
            }
        }
        let intermediates = &trust.intermediates;
        intermediates.iter().for_each(|file| all.each(CertificateUse::Intermediates, name, file, certificate_validity));
        let usage = CertificateUse::Crl(trust.crl_policy());
        trust.crls.iter().for_each(|list| all.each(usage, name, list, crl_validity));
        trust.identity.iter().for_each(|identity| all.add_chain(CertificateUse::Identity, name, &identity.certificate));
    }
    for (place, expiry) in &all.0 {
        // The compilation of the inspection authority reports its expiry as a problem.
        let is_reported = expiry.usage == CertificateUse::Ca && expiry.expires_at < now;
        if let Some(message) = expiry.warning(now).filter(|_| !is_reported) {
            problems.push(Problem::warning(WarningCode::ExpiresSoon, Some(*place), message).help(expiry.help()));
        }
    }
    all.0.into_iter().map(|(_, expiry)| expiry).collect()
}

impl Expiry {
    /// Returns the warning that applies at this time, if any.
    pub fn warning(&self, now: Timestamp) -> Option<String> {
        let (label, expires_at, consequence) = (self.label(), self.expires_at, self.usage.consequence());
        let is_list = matches!(self.usage, CertificateUse::Crl(_) | CertificateUse::ClientCrl);
        if expires_at < now {
            Some(match is_list {
                true => format!("{label} has been out of date since {expires_at}: {consequence}"),
                false => format!("{label} expired at {expires_at}: {consequence}"),
            })
        } else if self.is_expiring(now) {
            Some(format!("{label} {} at {expires_at}", if is_list { "will be out of date" } else { "expires" }))
        } else if self.valid_from > now.as_second() && is_list {
            Some(format!("{label} has a thisUpdate in the future: outgate ignores the list until then"))
        } else if self.valid_from > now.as_second() {
            Some(format!("{label} is not valid yet: {consequence}"))
        } else {
            None
        }
    }

    fn is_expiring(&self, now: Timestamp) -> bool {
        self.expires_at.duration_since(now) < self.warn_before
    }

    fn label(&self) -> String {
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

    /// Returns the advice: how to replace the file.
    pub fn help(&self) -> &'static str {
        match self.usage {
            CertificateUse::Ca => "clients must trust its successor before it expires: `outgate ca new`",
            CertificateUse::Roots | CertificateUse::ClientCa => {
                "add its successor to the file; remove this one when no peer uses it"
            }
            _ => "replace the file: outgate loads the new file at once",
        }
    }
}

struct ExpiryCollector(Vec<(SourceSpan, Expiry)>);

impl ExpiryCollector {
    /// Adds a chain, which expires with its first certificate to expire.
    fn add_chain(&mut self, usage: CertificateUse, trust: &str, file: &Located<PemFile>) {
        let periods: Vec<_> = file.parts.iter().filter_map(|der| certificate_validity(der)).collect();
        let from = periods.iter().map(|(from, _)| *from).max();
        let until = periods.iter().map(|(_, until)| *until).min();
        if let (Some(from), Some(until)) = (from, until) {
            self.add(usage, trust, file, None, (from, until));
        }
    }

    fn each(
        &mut self,
        usage: CertificateUse,
        trust: &str,
        file: &Located<PemFile>,
        validity: fn(&[u8]) -> Option<(i64, i64)>,
    ) {
        for (index, validity) in file.parts.iter().enumerate().filter_map(|(index, der)| Some((index, validity(der)?)))
        {
            self.add(usage, trust, file, Some(index + 1), validity);
        }
    }

    /// Adds the certificates of a file of authorities; some of them may be no authorities.
    fn add_authorities(&mut self, usage: CertificateUse, purpose: Purpose, trust: &str, file: &Located<PemFile>) {
        for (index, der) in file.parts.iter().enumerate() {
            let Some(validity) = certificate_validity(der) else { continue };
            let usage = if anchors::is_ca(der, purpose) { usage } else { CertificateUse::DirectlyTrusted(purpose) };
            self.add(usage, trust, file, Some(index + 1), validity);
        }
    }

    fn add(
        &mut self,
        usage: CertificateUse,
        trust: &str,
        file: &Located<PemFile>,
        number: Option<usize>,
        validity: (i64, i64),
    ) {
        let (from, until) = validity;
        let warn_before_max = if usage == CertificateUse::Ca { WARN_BEFORE_CA } else { WARN_BEFORE };
        let part = SignedDuration::from_secs(until.saturating_sub(from)) / WARN_LIFETIME_DIVISOR;
        let ends = certificate_timestamp(until);
        let path = file.path.clone();
        let expiry = Expiry {
            usage,
            trust: trust.to_owned(),
            path,
            number,
            valid_from: from,
            expires_at: ends,
            warn_before: warn_before_max.min(part),
        };
        self.0.push((file.span, expiry));
    }
}

/// Converts the time of a certificate. 99991231235959Z means "no expiry" (RFC 5280 §4.1.2.5), and exceeds the range of
/// `Timestamp`.
pub fn certificate_timestamp(seconds: i64) -> Timestamp {
    Timestamp::from_second(seconds).unwrap_or(Timestamp::MAX)
}

/// Returns the validity period in seconds. An unreadable certificate is reported elsewhere.
fn certificate_validity(der: &[u8]) -> Option<(i64, i64)> {
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    Some((certificate.validity().not_before.timestamp(), certificate.validity().not_after.timestamp()))
}

fn crl_validity(der: &[u8]) -> Option<(i64, i64)> {
    let (_, list) = CertificateRevocationList::from_der(der).ok()?;
    Some((list.last_update().timestamp(), list.next_update()?.timestamp()))
}

#[cfg(test)]
mod tests;
