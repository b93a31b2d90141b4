//! The options of message signatures: tag, label, covered components, lifetime and key directory.
//! Does a signature with these options prove anything to a receiver?

use std::time::Duration;

use super::component::Component;
use super::{CONTENT_DIGEST, SIGNATURE_AGENT};
use crate::config::{self, Located, Problem};

/// The keys of `[signers.NAME]` that are for message signatures.
pub(in crate::policy::sign) const OPTIONS: &[&str] = &["tag", "label", "components", "lifetime", "signature_agent"];

/// The components that are covered by default, if the request has them. A receiver behind a load balancer does not know
/// `@target-uri` and `@scheme`, and HTTP/2 has no `Host`.
const COMPONENTS: [&str; 7] =
    ["@method", "@authority", "@path", "@query", "content-digest", "content-type", "webhook-id"];
/// The components of one signature at most: each is a line of the signed text.
const COMPONENTS_MAX: usize = 64;
/// The default lifetime: the tolerance of Standard Webhooks.
const LIFETIME: Duration = Duration::from_secs(300);
/// The longest lifetime that the draft of Web Bot Auth allows.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// The default tag, which says the purpose of a signature (RFC 9421 §2.3).
const TAG: &str = "webhook";
const WEB_BOT_AUTH: &str = "web-bot-auth";
/// The prefix of default labels, which are numbered: sig1, sig2.
const LABEL: &str = "sig";
/// The characters of a tag or label at most.
const TEXT_MAX: usize = 64;

/// The compiled options of message signatures.
pub(super) struct SignatureProfile {
    pub(super) tag: String,
    /// `None` if labels are `sig1`, `sig2` and so on.
    label: Option<String>,
    pub(super) components: Vec<Component>,
    /// The seconds between `created` and `expires`.
    pub(super) lifetime: i64,
    /// The URL that `Signature-Agent` names.
    pub(super) agent: Option<String>,
}

impl SignatureProfile {
    /// Compiles the options. Reports every problem, and returns `None` if there is one.
    pub(super) fn compile(written: &config::Signer, problems: &mut Vec<Problem>) -> Option<Self> {
        let (before, written, scheme) = (problems.len(), &written.signature_params, written.scheme.span);
        let mut report = |problem: Problem, help: &str| problems.push(problem.help(help));
        let tag = written.tag.as_ref().map_or(TAG, |tag| tag.as_str());
        if let Some(written) = &written.tag
            && !is_text(tag)
        {
            report(
                Problem::at(written.span, "this is not a tag"),
                "write 1 to 64 characters of visible ASCII, without \" and \\",
            );
        }
        if let Some(label) = &written.label
            && !is_label(label)
        {
            let help = "write a lower-case letter, then up to 63 of a-z, 0-9, _ - . * (RFC 9651 §3.1.2)";
            report(Problem::at(label.span, format!("{:?} is not a label", label.value)), help);
        }
        let lifetime = written.lifetime.as_ref().map_or(LIFETIME, |lifetime| lifetime.value);
        if let Some(written) = &written.lifetime
            && (lifetime.subsec_nanos() > 0 || lifetime.is_zero() || lifetime > LIFETIME_MAX)
        {
            report(
                Problem::at(written.span, "this is not a lifetime of a signature"),
                "write whole seconds, from \"1s\" to \"24h\"",
            );
        }
        if let Some(agent) = &written.signature_agent
            && !(agent.starts_with("https://") && agent.len() > "https://".len() && is_visible(agent))
        {
            report(
                Problem::at(agent.span, "this is not the URL of a key directory"),
                "write signature_agent = \"https://signer.example\"",
            );
        }
        let mut components: Vec<Component> = Vec::new();
        let default = COMPONENTS.map(|name| Located { value: name.to_owned(), span: scheme });
        let list = written.components.as_deref().unwrap_or(&default);
        for text in list {
            match Component::parse(text) {
                Ok(component) if components.iter().any(|other| other.identifier == component.identifier) => {
                    report(
                        Problem::at(text.span, format!("the component {} occurs twice", text.value)),
                        "cover each component once",
                    );
                }
                Ok(component) => components.push(component),
                Err(why) => {
                    let help = "write an identifier of RFC 9421 §2: \"@authority\", \"content-type\", \
                                \"x-dict;key=\\\"a\\\"\"";
                    report(Problem::at(text.span, format!("the component {:?} {why}", text.value)), help);
                }
            }
        }
        let span = list.first().map_or(scheme, |first| first.span);
        if list.len() > COMPONENTS_MAX {
            report(Problem::at(span, format!("there are {} components", list.len())), "write at most 64");
        }
        let agent = written.signature_agent.as_ref().map(|agent| agent.value.clone());
        let profile = Self {
            tag: tag.to_owned(),
            label: written.label.as_ref().map(|label| label.value.clone()),
            components,
            lifetime: i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX),
            agent,
        };
        if problems.len() == before {
            profile.check_coverage(span, problems);
        }
        (problems.len() == before).then_some(profile)
    }

    /// Reports a list of components that leaves the body or the target unsigned.
    fn check_coverage(&self, span: config::SourceSpan, problems: &mut Vec<Problem>) {
        let mut report = |message: &str, help: &str| problems.push(Problem::at(span, message).help(help));
        let has_destination = self.components.iter().any(Component::is_destination);
        let names_digest = self.components.iter().any(|component| component.refers_to_field(&CONTENT_DIGEST));
        if names_digest && !self.covers_body() {
            let message = "the components cover a part of Content-Digest, which requests may lack";
            report(message, "cover \"content-digest\" as a whole");
        } else if self.is_web_bot_auth() && !has_destination {
            let message = "a signature with the tag web-bot-auth must cover @authority or @target-uri";
            report(message, "write, for example, components = [\"@authority\"]");
        } else if !self.is_web_bot_auth() && !self.covers_body() {
            let message = "the components leave the body unsigned: a third party could replace it";
            report(message, "add \"content-digest\"; only the tag web-bot-auth does not require it");
        }
    }

    pub(super) fn is_web_bot_auth(&self) -> bool {
        self.tag == WEB_BOT_AUTH
    }

    pub(super) fn covers_body(&self) -> bool {
        self.components.iter().any(|component| component.covers_field(&CONTENT_DIGEST))
    }

    /// Returns the member of `Signature-Agent` that the signature with this label covers; `None` if it covers the whole
    /// field, or if there is no agent.
    pub(super) fn agent_component(&self, label: &str) -> Option<Component> {
        let is_covered = self.components.iter().any(|component| component.covers_field(&SIGNATURE_AGENT));
        (self.agent.is_some() && !is_covered).then(|| Component::agent_member(label))
    }

    /// Returns `count` labels that are not taken, in order.
    pub(super) fn free_labels(&self, is_taken: impl Fn(&str) -> bool, count: usize) -> Vec<String> {
        let base = self.label.as_deref().unwrap_or(LABEL);
        // A label that an operator chose stands alone first.
        let first = self.label.iter().cloned();
        let from = if self.label.is_some() { 2_u64 } else { 1 };
        let numbered = (from..).map(|number| format!("{base}{number}"));
        first.chain(numbered).filter(|label| !is_taken(label)).take(count).collect()
    }
}

fn is_visible(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_graphic() && !b"\"\\".contains(&byte))
}

fn is_text(text: &str) -> bool {
    (1..=TEXT_MAX).contains(&text.len()) && is_visible(text)
}

/// A key of a dictionary (RFC 9651 §3.1.2); two letters are left for a number.
fn is_label(label: &str) -> bool {
    let follows = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-.*".contains(&byte);
    label.bytes().next().is_some_and(|first| first.is_ascii_lowercase())
        && label.len() <= TEXT_MAX
        && label.bytes().all(follows)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::fixture::{at, signer};

    fn compiled(profile: config::SignatureParams) -> (Option<SignatureProfile>, Vec<String>) {
        let mut problems = Vec::new();
        let compiled = SignatureProfile::compile(
            &config::Signer { signature_params: profile, ..signer("rfc9421") },
            &mut problems,
        );
        (compiled, problems.into_iter().map(|problem| problem.message).collect())
    }

    fn components(list: &[&str], tag: &str) -> config::SignatureParams {
        let components = list.iter().map(|text| at(40, (*text).to_owned())).collect();
        config::SignatureParams {
            components: Some(components),
            tag: Some(at(41, tag.into())),
            ..config::SignatureParams::default()
        }
    }

    #[test]
    fn profile_refuses_components_that_leave_the_body_or_target_unsigned() {
        let body = "the components leave the body unsigned: a third party could replace it";
        let destination = "a signature with the tag web-bot-auth must cover @authority or @target-uri";
        for (list, tag, expected) in [
            (&["content-digest"][..], "acme", None),
            (&["content-digest;sf", "@target-uri"], "acme", None),
            (&["@authority"], "web-bot-auth", None),
            (&["@target-uri", "content-digest"], "web-bot-auth", None),
            (&[], "acme", Some(body)),
            (&["@method", "@authority"], "webhook", Some(body)),
            (&[], "web-bot-auth", Some(destination)),
            (&["@path", "content-digest"], "web-bot-auth", Some(destination)),
            (
                &["@authority", "content-digest;key=\"sha-256\""],
                "acme",
                Some("the components cover a part of Content-Digest, which requests may lack"),
            ),
            (&["content-digest", "content-digest"], "acme", Some("the component content-digest occurs twice")),
            (&["content-digest", "Date"], "acme", Some("the component \"Date\" is not in lower case: write date")),
        ] {
            let (compiled, problems) = compiled(components(list, tag));
            assert_eq!(problems, Vec::from_iter(expected.map(str::to_owned)), "{list:?}");
            assert_eq!(compiled.is_some(), expected.is_none(), "{list:?}");
        }
    }

    #[test]
    fn profile_refuses_values_that_cannot_be_serialized() {
        let text = |text: &str| Some(at(42, text.to_owned()));
        let none = config::SignatureParams::default();
        for (profile, expected) in [
            (config::SignatureParams { tag: text("a\"b"), ..none.clone() }, "this is not a tag"),
            (config::SignatureParams { tag: text(""), ..none.clone() }, "this is not a tag"),
            (config::SignatureParams { label: text("Sig"), ..none.clone() }, "\"Sig\" is not a label"),
            (config::SignatureParams { label: text("1"), ..none.clone() }, "\"1\" is not a label"),
            (
                config::SignatureParams { lifetime: Some(at(43, Duration::from_millis(1500))), ..none.clone() },
                "this is not a lifetime of a signature",
            ),
            (
                config::SignatureParams { lifetime: Some(at(43, Duration::from_secs(90_000))), ..none.clone() },
                "this is not a lifetime of a signature",
            ),
            (
                config::SignatureParams { signature_agent: text("http://a.example"), ..none.clone() },
                "this is not the URL of a key directory",
            ),
        ] {
            assert_eq!(compiled(profile).1, [expected]);
        }
    }

    #[test]
    fn profile_accepts_the_longest_lifetime_and_list_of_components() {
        let hours = |hours: u64| config::SignatureParams {
            lifetime: Some(at(43, Duration::from_secs(3600 * hours))),
            ..config::SignatureParams::default()
        };
        assert_eq!(compiled(hours(24)).0.unwrap().lifetime, 86_400);
        assert_eq!(compiled(hours(0)).1, ["this is not a lifetime of a signature"]);
        let fields: Vec<String> = (1..=COMPONENTS_MAX).map(|n| format!("x-{n}")).collect();
        let with_body = |fields: &[String]| {
            let names: Vec<&str> = ["content-digest"].into_iter().chain(fields.iter().map(String::as_str)).collect();
            compiled(components(&names, "acme")).1
        };
        assert_eq!(with_body(&fields[1..]), [""; 0]);
        assert_eq!(with_body(&fields), ["there are 65 components"]);
        let agent = config::SignatureParams {
            signature_agent: Some(at(42, "https://".to_owned())),
            ..config::SignatureParams::default()
        };
        assert_eq!(compiled(agent).1, ["this is not the URL of a key directory"]);
    }

    /// A member of `Signature-Agent` is covered unless the whole field is.
    #[test]
    fn profile_covers_its_agent_once() {
        let agent = |components: &[&str], agent: Option<&str>| {
            let written = config::SignatureParams {
                signature_agent: agent.map(|url| at(42, url.to_owned())),
                ..self::components(components, "acme")
            };
            compiled(written).0.unwrap().agent_component("sig1").is_some()
        };
        let url = Some("https://signer.example");
        assert!(agent(&["content-digest"], url));
        assert!(!agent(&["content-digest", "signature-agent"], url));
        assert!(!agent(&["content-digest"], None));
    }

    /// RFC 9651 §3.1.2, without a leading `*`.
    #[test]
    fn profile_label_is_a_key_of_a_dictionary() {
        for label in ["a", "sig1", "a_b-c.d*", &"a".repeat(TEXT_MAX)] {
            assert!(is_label(label), "{label}");
        }
        for label in ["", "1a", "A", "aB", "a b", "*a", "-a", "a:b", &"a".repeat(TEXT_MAX + 1)] {
            assert!(!is_label(label), "{label}");
        }
    }

    #[test]
    fn profile_skips_labels_in_use() {
        let label = |label: Option<&str>| {
            let label = label.map(|label| at(42, label.to_owned()));
            compiled(config::SignatureParams { label, ..config::SignatureParams::default() }).0.unwrap()
        };
        assert_eq!(label(None).free_labels(|label| label == "sig1", 2), ["sig2", "sig3"]);
        assert_eq!(label(Some("bot")).free_labels(|_| false, 2), ["bot", "bot2"]);
        assert_eq!(label(Some("bot")).free_labels(|label| label == "bot", 1), ["bot2"]);
    }
}
