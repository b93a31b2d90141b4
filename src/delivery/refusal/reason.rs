//! The reason phrase of a refusal, in HTTP/1.1.
//! What does a developer see whose client shows nothing of a refused CONNECT but its status line?

use std::borrow::Cow;

use super::Refusal;

/// A reason phrase (RFC 9112 §4): the status's own, and behind it the code with its details. All of it is from fixed
/// words of outgate: nothing that a client, a target or a name server chose is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReasonPhrase(String);

impl From<ReasonPhrase> for Cow<'static, str> {
    fn from(reason: ReasonPhrase) -> Self {
        Cow::Owned(reason.0)
    }
}

impl Refusal {
    /// As in `502 Bad Gateway (certificate_untrusted: self_signed)`.
    pub(super) fn reason(&self) -> ReasonPhrase {
        let phrase = self.effective_status().canonical_reason().unwrap_or_default();
        let details = self.details().map(|word| format!(": {word}")).unwrap_or_default();
        ReasonPhrase(format!("{phrase} ({}{details})", self.code.name()))
    }
}
