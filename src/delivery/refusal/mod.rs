//! A refusal: the reason why a delivery is not made, for the client and for the operator.
//! What does the client learn when its webhook is not delivered?

mod reason;
mod respond;
mod table;

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use http::{HeaderName, HeaderValue, StatusCode};

use crate::names::Target;
use crate::policy::redact::{Redacted, Redactor};

pub use reason::ReasonPhrase;
pub(in crate::delivery) use respond::PROXY_STATUS;
pub use table::{Blame, Code, Row, TABLE};

/// One refusal: a code, and the context of this case. The context is boxed, so that a `Result` stays small.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub code: Code,
    context: Box<RefusalContext>,
}

#[derive(Clone, Debug)]
struct RefusalContext {
    /// The status, if RFC 9110 has a more precise one than the row (414, 417, 431, 501, 505).
    status: Option<StatusCode>,
    /// The error type, if RFC 9209 has a more precise one than the row.
    proxy_status: Option<&'static str>,
    /// The number and the name of the target's TLS alert (RFC 9209 §2.3.15).
    alert: Option<(u8, &'static str)>,
    detail: Detail,
    subject: Subject,
    /// One word within the code, such as `self_signed`.
    details: Option<&'static str>,
    /// The cause, for the operator's record only.
    cause: Option<String>,
    retry_after: Option<Duration>,
    /// The evidence of whether the target has processed the request. It takes precedence over the row.
    evidence: Option<ProcessingEvidence>,
    /// The blame, if it is not the row's.
    blame: Option<Blame>,
    /// No retry succeeds, although the row allows one.
    is_final: bool,
    /// The client has closed its connection, so no response reaches it.
    is_client_gone: bool,
    /// No other refusal stands for the event that caused this one.
    is_separate_event: bool,
    fields: Vec<(HeaderName, HeaderValue)>,
}

/// The sentence for the client. It contains no internal address. It may quote the request: only a redactor reads it.
#[derive(Clone, Debug)]
enum Detail {
    Sentence(Cow<'static, str>),
    /// The predicate of a sentence about the subject: `refused the connection`.
    Predicate(Cow<'static, str>),
    /// The rest of a sentence about a part of the subject: `certificate is refused`.
    Part(Cow<'static, str>),
    /// A sentence that quotes the request, and has passed the redactor.
    Quote(Redacted<'static>),
}

/// The server that a refusal is about.
#[derive(Clone, Copy, Debug)]
enum Subject {
    Target,
    /// The token endpoint, from which outgate got no token for the target.
    TokenEndpoint,
}

/// Evidence of whether the target has processed the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProcessingEvidence {
    /// outgate has received a byte of a response.
    ResponseReceived,
    /// The target has announced that it did not process the request, or outgate has sent no byte of it.
    Unprocessed,
}

/// Time after which a client may retry, if no limit determines it.
const RETRY_SOON: Duration = Duration::from_secs(1);

impl Refusal {
    pub fn new(code: Code, detail: impl Into<Cow<'static, str>>) -> Self {
        Self::with_detail(code, Detail::Sentence(detail.into()))
    }

    pub fn malformed(detail: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Code::RequestMalformed, detail)
    }

    /// Returns the refusal of a malformed request whose detail quotes the request.
    pub fn quoting(detail: Redacted<'static>) -> Self {
        Self::with_detail(Code::RequestMalformed, Detail::Quote(detail))
    }

    /// Returns a refusal whose detail is `the target {predicate}`.
    pub fn target(code: Code, predicate: impl Into<Cow<'static, str>>) -> Self {
        Self::with_detail(code, Detail::Predicate(predicate.into()))
    }

    /// Returns a refusal whose detail is `the target's {rest}`.
    pub fn part_of_target(code: Code, rest: impl Into<Cow<'static, str>>) -> Self {
        Self::with_detail(code, Detail::Part(rest.into()))
    }

    fn with_detail(code: Code, detail: Detail) -> Self {
        let context = RefusalContext {
            status: None,
            proxy_status: None,
            alert: None,
            detail,
            subject: Subject::Target,
            details: None,
            cause: None,
            retry_after: matches!(code, Code::Draining | Code::NoEgress).then_some(RETRY_SOON),
            evidence: None,
            blame: None,
            is_final: false,
            is_client_gone: false,
            is_separate_event: false,
            fields: Vec::new(),
        };
        Self { code, context: Box::new(context) }
    }

    #[must_use]
    pub fn status(mut self, status: StatusCode) -> Self {
        self.context.status = Some(status);
        self
    }

    #[must_use]
    pub fn proxy_status(mut self, error: &'static str) -> Self {
        self.context.proxy_status = Some(error);
        self
    }

    /// Sets the number and the name of the TLS alert by which the target ended the handshake.
    #[must_use]
    pub fn alert(mut self, id: u8, name: &'static str) -> Self {
        self.context.proxy_status = Some("tls_alert_received");
        self.context.alert = Some((id, name));
        self.with_details(name)
    }

    /// Sets the word within the code.
    #[must_use]
    pub fn with_details(mut self, details: &'static str) -> Self {
        self.context.details = Some(details);
        self
    }

    /// Sets the cause, which only the operator's record has.
    #[must_use]
    pub fn with_cause(mut self, cause: impl ToString) -> Self {
        self.context.cause = Some(cause.to_string());
        self
    }

    /// States that a byte of a response has arrived: the target has the webhook, and a retry would deliver it again.
    #[must_use]
    pub fn responded(mut self) -> Self {
        self.context.evidence = Some(ProcessingEvidence::ResponseReceived);
        self
    }

    /// States that the target has certainly not processed the webhook.
    #[must_use]
    pub fn unprocessed(mut self) -> Self {
        self.context.evidence = Some(ProcessingEvidence::Unprocessed);
        self.with_details("unprocessed")
    }

    /// States that the client has closed its connection. The record then has `client_gone` instead of the refusal.
    #[must_use]
    pub fn client_gone(mut self) -> Self {
        self.context.is_client_gone = true;
        self
    }

    /// States that no other refusal stands for the event that caused this one. The circuit breaker counts it at once.
    #[must_use]
    pub fn separate_event(mut self) -> Self {
        self.context.is_separate_event = true;
        self
    }

    /// Sets the blame, if it is not the row's.
    #[must_use]
    pub fn blame(mut self, blame: Blame) -> Self {
        self.context.blame = Some(blame);
        self
    }

    /// States that the operator or the target must change something before the webhook can arrive.
    #[must_use]
    pub fn not_retryable(mut self) -> Self {
        self.context.is_final = true;
        self
    }

    #[must_use]
    pub fn retry_after(mut self, wait: Duration) -> Self {
        self.context.retry_after = Some(wait);
        self
    }

    #[must_use]
    pub fn field(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.context.fields.push((name, value));
        self
    }

    /// Makes a refusal of the request for a token one of the delivery that needs the token.
    ///
    /// The operator has chosen the endpoint, so the client is not to blame for it.
    #[must_use]
    pub fn of_token_endpoint(mut self, endpoint: &Target) -> Self {
        if self.code.row().blame == Blame::Client {
            self.code = Code::Internal;
            self.context.proxy_status = None;
        }
        self.context.subject = Subject::TokenEndpoint;
        self.context.evidence = None; // it is about the request for a token, not the webhook
        let cause = self.context.cause.take().map(|cause| format!(": {cause}")).unwrap_or_default();
        self.with_cause(format!("token endpoint {endpoint}{cause}"))
    }

    /// The sentence for the client.
    pub fn detail(&self, redactor: &Redactor) -> Redacted<'static> {
        let text = match (self.context.subject, &self.context.detail) {
            (_, Detail::Quote(sentence)) => return sentence.clone(),
            (Subject::Target, Detail::Sentence(Cow::Borrowed(sentence))) => return Redacted::fixed(sentence),
            (Subject::Target, Detail::Sentence(Cow::Owned(sentence))) => sentence.clone(),
            (Subject::Target, Detail::Predicate(predicate)) => format!("the target {predicate}"),
            (Subject::Target, Detail::Part(rest)) => format!("the target's {rest}"),
            (Subject::TokenEndpoint, detail) => {
                let sentence = match detail {
                    Detail::Sentence(sentence) => sentence.to_string(),
                    Detail::Quote(sentence) => sentence.to_string(),
                    Detail::Predicate(predicate) => format!("it {predicate}"),
                    Detail::Part(rest) => format!("its {rest}"),
                };
                format!("no token from the token endpoint: {sentence}")
            }
        };
        redactor.message(&text).into_owned()
    }

    /// One word within the code, such as `self_signed`.
    pub fn details(&self) -> Option<&'static str> {
        self.context.details
    }

    /// The cause, for the operator only.
    pub fn cause(&self, redactor: &Redactor) -> Option<Redacted<'_>> {
        self.context.cause.as_deref().map(|cause| redactor.message(cause))
    }

    pub fn is_client_gone(&self) -> bool {
        self.context.is_client_gone
    }

    pub fn is_separate_event(&self) -> bool {
        self.context.is_separate_event
    }

    pub fn effective_blame(&self) -> Blame {
        self.context.blame.unwrap_or(self.code.row().blame)
    }

    /// Returns whether a retry makes sense.
    ///
    /// It never does after a byte of a response, and always does if the target has certainly not processed the request.
    /// Otherwise the row decides.
    pub fn is_retryable(&self) -> bool {
        match self.context.evidence {
            Some(ProcessingEvidence::ResponseReceived) => false,
            Some(ProcessingEvidence::Unprocessed) => true,
            None => self.code.row().retryable && !self.context.is_final,
        }
    }

    pub fn effective_status(&self) -> StatusCode {
        self.context.status.unwrap_or(self.code.row().status)
    }
}

impl fmt::Display for Refusal {
    /// Writes the words of the table. The sentence needs a redactor.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code.row().title)
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;
    use crate::names::Scheme;

    #[test]
    fn refusal_names_its_subject() {
        let endpoint = Target { scheme: Scheme::Https, host: host::canonical("login.example").unwrap(), port: 443 };
        let cases = [
            (Refusal::target(Code::ConnectRefused, "refused the connection"), "the target refused", ": it refused"),
            (Refusal::part_of_target(Code::TlsFailed, "port is shut"), "the target's port", ": its port"),
            (Refusal::new(Code::ConnectTimeout, "no connection"), "no connection", ": no connection"),
        ];
        for (refusal, of_target, of_endpoint) in cases {
            let redactor = Redactor::default();
            assert!(refusal.detail(&redactor).as_str().starts_with(of_target), "{refusal:?}");
            let detail = refusal.of_token_endpoint(&endpoint).detail(&redactor);
            assert!(detail.as_str().starts_with(&format!("no token from the token endpoint{of_endpoint}")), "{detail}");
        }
    }
}
