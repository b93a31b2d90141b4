//! The rules of RFC 9113 for the fields of one section: a message that violates one is malformed (§8.1.1).
//! Which rule does a field violate, and does it depend on the section?

/// The field that carries a path which h2 does not read as it was sent.
pub const UNENCODED_PATH: &str = "outgate-unencoded-path";

/// The kind of a field section.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldSection {
    Request,
    Response,
    Trailers,
}

/// A rule that a field violates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldRule {
    /// A name has an upper-case letter or an invalid character (§8.2.1).
    FieldName,
    /// A value has a control character (§8.2.1).
    FieldValue,
    /// A value begins or ends with white space (§8.2.1).
    WhiteSpace,
    /// A field is connection-specific (§8.2.2).
    ConnectionField,
    /// A pseudo-header field is unknown, missing, repeated or misplaced (§8.3).
    PseudoHeader,
    /// `:status` is not a status code (§8.3.2), or is 101 (§8.6).
    Status,
}

impl FieldRule {
    pub const ALL: [FieldRule; 6] = [
        FieldRule::FieldName,
        FieldRule::FieldValue,
        FieldRule::WhiteSpace,
        FieldRule::ConnectionField,
        FieldRule::PseudoHeader,
        FieldRule::Status,
    ];

    /// Returns the name of the rule in a refusal.
    pub fn as_str(self) -> &'static str {
        match self {
            FieldRule::FieldName => "field_name",
            FieldRule::FieldValue => "field_value",
            FieldRule::WhiteSpace => "field_white_space",
            FieldRule::ConnectionField => "connection_field",
            FieldRule::PseudoHeader => "pseudo_header",
            FieldRule::Status => "status",
        }
    }
}

/// The class of a field name. An entry stores it, because a block may refer to one entry thousands of times.
#[derive(Clone, Copy)]
pub(super) enum NameClass {
    Pseudo(PseudoHeader),
    /// The field is connection-specific (RFC 9113 §8.2.2).
    Connection,
    Te,
    Regular,
    /// The name of the field that carries an unencoded path: no client may send it.
    Reserved,
    Malformed(FieldRule),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum PseudoHeader {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

/// The kind of a field, independent of its section.
#[derive(Clone, Copy)]
pub(super) enum FieldKind {
    Regular,
    /// The value begins or ends with white space.
    SurroundedBySpace,
    Pseudo(PseudoHeader),
    /// The field is `:status` of an interim response.
    Interim,
    Reserved,
    Malformed(FieldRule),
}

impl NameClass {
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            b":method" => NameClass::Pseudo(PseudoHeader::Method),
            b":scheme" => NameClass::Pseudo(PseudoHeader::Scheme),
            b":authority" => NameClass::Pseudo(PseudoHeader::Authority),
            b":path" => NameClass::Pseudo(PseudoHeader::Path),
            b":protocol" => NameClass::Pseudo(PseudoHeader::Protocol),
            b":status" => NameClass::Pseudo(PseudoHeader::Status),
            [b':', ..] => NameClass::Malformed(FieldRule::PseudoHeader),
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
                NameClass::Connection
            }
            b"te" => NameClass::Te,
            name if name == UNENCODED_PATH.as_bytes() => NameClass::Reserved,
            name if is_token(name) && !name.iter().any(u8::is_ascii_uppercase) => NameClass::Regular,
            _ => NameClass::Malformed(FieldRule::FieldName),
        }
    }

    /// Validates a field of this name.
    pub(super) fn validate(self, value: &[u8]) -> FieldKind {
        match self {
            NameClass::Malformed(rule) => return FieldKind::Malformed(rule),
            NameClass::Connection => return FieldKind::Malformed(FieldRule::ConnectionField),
            _ if !value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != DELETE)) => {
                return FieldKind::Malformed(FieldRule::FieldValue);
            }
            _ => {}
        }
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        let has_outer_space = is_space(value.first()) || is_space(value.last());
        match self {
            NameClass::Pseudo(_) if has_outer_space => FieldKind::Malformed(FieldRule::WhiteSpace),
            NameClass::Pseudo(PseudoHeader::Status) => match value {
                b"101" => FieldKind::Malformed(FieldRule::Status),
                [b'1', b'0'..=b'9', b'0'..=b'9'] => FieldKind::Interim,
                [b'2'..=b'9', b'0'..=b'9', b'0'..=b'9'] => FieldKind::Pseudo(PseudoHeader::Status),
                _ => FieldKind::Malformed(FieldRule::Status),
            },
            NameClass::Pseudo(PseudoHeader::Method) if !is_token(value) => FieldKind::Malformed(FieldRule::FieldValue),
            // h2 represents pseudo-header fields as UTF-8.
            NameClass::Pseudo(_) if std::str::from_utf8(value).is_err() => FieldKind::Malformed(FieldRule::FieldValue),
            NameClass::Pseudo(pseudo) => FieldKind::Pseudo(pseudo),
            NameClass::Te if value != b"trailers" => FieldKind::Malformed(FieldRule::ConnectionField),
            NameClass::Reserved => FieldKind::Reserved,
            _ if has_outer_space => FieldKind::SurroundedBySpace,
            _ => FieldKind::Regular,
        }
    }
}

/// Returns whether the text is a token (RFC 9110 §5.6.2).
fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.len() <= NAME_MAX && text.iter().all(is_tchar)
}

const DELETE: u8 = 0x7f;
/// The longest name that the `http` crate supports, in bytes.
const NAME_MAX: usize = (1 << 16) - 1;

/// Validates the fields of one section in their order.
pub(super) struct SectionValidator {
    section: FieldSection,
    /// A bit for each pseudo-header field that was added.
    seen_pseudo: u8,
    has_regular: bool,
    is_interim: bool,
    violated: Option<FieldRule>,
}

impl SectionValidator {
    pub(super) fn new(section: FieldSection) -> Self {
        Self { section, seen_pseudo: 0, has_regular: false, is_interim: false, violated: None }
    }

    pub(super) fn add(&mut self, kind: FieldKind) {
        let violated = match kind {
            FieldKind::Malformed(rule) => Some(rule),
            // The server refuses such a request with a response and a record.
            FieldKind::SurroundedBySpace if self.section != FieldSection::Request => Some(FieldRule::WhiteSpace),
            FieldKind::Reserved if self.section == FieldSection::Request => Some(FieldRule::FieldName),
            FieldKind::Regular | FieldKind::SurroundedBySpace | FieldKind::Reserved => {
                self.has_regular = true;
                None
            }
            FieldKind::Interim => {
                self.is_interim = true;
                self.add_pseudo(PseudoHeader::Status)
            }
            FieldKind::Pseudo(pseudo) => self.add_pseudo(pseudo),
        };
        self.violated = self.violated.or(violated);
    }

    fn add_pseudo(&mut self, pseudo: PseudoHeader) -> Option<FieldRule> {
        let bit = 1 << pseudo as u8;
        let is_of_section = match self.section {
            FieldSection::Request => pseudo != PseudoHeader::Status,
            FieldSection::Response => pseudo == PseudoHeader::Status,
            FieldSection::Trailers => false,
        };
        let is_repeated = self.seen_pseudo & bit != 0;
        self.seen_pseudo |= bit;
        (!is_of_section || is_repeated || self.has_regular).then_some(FieldRule::PseudoHeader)
    }

    /// Returns the first violated rule, and whether the section is the head of an interim response.
    pub(super) fn finish(self) -> (Option<FieldRule>, bool) {
        // The required pseudo-header fields of a request depend on its method; h2 checks them.
        let has_status = self.seen_pseudo & (1 << PseudoHeader::Status as u8) != 0;
        let is_missing = self.section == FieldSection::Response && !has_status;
        (self.violated.or(is_missing.then_some(FieldRule::PseudoHeader)), self.is_interim)
    }
}
