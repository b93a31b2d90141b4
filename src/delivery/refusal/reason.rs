//! The reason phrase of a refusal over HTTP/1.1.
//! What does a developer see if the client shows only the status line of a refused CONNECT?

use std::borrow::Cow;

use super::Refusal;

/// A reason phrase (RFC 9112 §4): that of the status, followed by the code with its details.
///
/// It consists of fixed words: no client, target or name server chooses any of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonPhrase(String);

impl From<ReasonPhrase> for Cow<'static, str> {
    fn from(reason: ReasonPhrase) -> Self {
        Cow::Owned(reason.0)
    }
}

impl Refusal {
    /// Returns a phrase such as `Bad Gateway (certificate_untrusted: self_signed)`.
    pub(super) fn reason(&self) -> ReasonPhrase {
        let phrase = self.effective_status().canonical_reason().unwrap_or_default();
        let details = self.details().map(|details| format!(": {details}")).unwrap_or_default();
        ReasonPhrase(format!("{phrase} ({}{details})", self.code.name()))
    }
}
