//! The reasons that a message is rejected, and the field that carries one through h2.
//! Why did the filter replace the head of this message?

use http::HeaderMap;

use crate::net::hpack::FieldRule;

/// The reason that a message is rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Violation {
    Field(FieldRule),
    /// The head of the message exceeds the limit.
    TooLarge,
    /// The target sends more interim responses to one request than [`INTERIM_MAX`](super::INTERIM_MAX).
    TooManyInterim,
}

/// The field that carries a [`Violation`] through h2, in the replacement of the rejected head. A peer that sends this
/// field rejects its own message.
pub(super) const VIOLATION_FIELD: &str = "outgate-response-violation";
const TOO_LARGE: &str = "too_large";
const TOO_MANY_INTERIM: &str = "too_many_interim";

impl Violation {
    /// Returns the violation that the replacement `head` carries.
    pub fn of(head: &HeaderMap) -> Option<Self> {
        let code = head.get(VIOLATION_FIELD)?.as_bytes();
        let mut all = FieldRule::ALL.into_iter().map(Self::Field).chain([Self::TooLarge, Self::TooManyInterim]);
        all.find(|violation| violation.as_str().as_bytes() == code)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Violation::Field(rule) => rule.as_str(),
            Violation::TooLarge => TOO_LARGE,
            Violation::TooManyInterim => TOO_MANY_INTERIM,
        }
    }
}
