//! The rules of RFC 9113 for the fields of one section: a message that breaks one is malformed (§8.1.1).
//! Which rule does a field break, and does it depend on where the field stands?

/// What a field section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldSection {
    Request,
    Response,
    Trailers,
}

/// A rule that a field breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldRule {
    /// §8.2.1: an upper-case letter, or what is no letter of a name at all.
    FieldName,
    /// §8.2.1: a control character.
    FieldValue,
    /// §8.2.1: white space around a value.
    WhiteSpace,
    /// §8.2.2: a field of the connection.
    ConnectionField,
    /// §8.3: a pseudo-header field that is unknown, missing or repeated, or stands where it must not.
    PseudoHeader,
    /// §8.3.2: no status code, or 101 (§8.6).
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

    /// Returns the word that names the rule in a refusal.
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

/// What a name is, judged once: a block may name thousands of fields by one entry.
#[derive(Clone, Copy)]
pub(super) enum NameClass {
    Pseudo(PseudoHeader),
    /// RFC 9113 §8.2.2.
    Connection,
    Te,
    Regular,
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

/// What a field is, wherever it stands.
#[derive(Clone, Copy)]
pub(super) enum FieldKind {
    Regular,
    /// There is white space around its value.
    SurroundedBySpace,
    Pseudo(PseudoHeader),
    /// `:status` of an interim response.
    Interim,
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
            name if is_token(name) && !name.iter().any(u8::is_ascii_uppercase) => NameClass::Regular,
            _ => NameClass::Malformed(FieldRule::FieldName),
        }
    }

    /// Judges a field of this name.
    pub(super) fn judge(self, value: &[u8]) -> FieldKind {
        match self {
            NameClass::Malformed(rule) => return FieldKind::Malformed(rule),
            NameClass::Connection => return FieldKind::Malformed(FieldRule::ConnectionField),
            _ if !value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != DELETE)) => {
                return FieldKind::Malformed(FieldRule::FieldValue);
            }
            _ => {}
        }
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        let is_spaced = is_space(value.first()) || is_space(value.last());
        match self {
            NameClass::Pseudo(_) if is_spaced => FieldKind::Malformed(FieldRule::WhiteSpace),
            NameClass::Pseudo(PseudoHeader::Status) => match value {
                b"101" => FieldKind::Malformed(FieldRule::Status),
                [b'1', b'0'..=b'9', b'0'..=b'9'] => FieldKind::Interim,
                [b'2'..=b'9', b'0'..=b'9', b'0'..=b'9'] => FieldKind::Pseudo(PseudoHeader::Status),
                _ => FieldKind::Malformed(FieldRule::Status),
            },
            NameClass::Pseudo(PseudoHeader::Method) if !is_token(value) => FieldKind::Malformed(FieldRule::FieldValue),
            // h2 has no other text of a pseudo-header field.
            NameClass::Pseudo(_) if std::str::from_utf8(value).is_err() => FieldKind::Malformed(FieldRule::FieldValue),
            NameClass::Pseudo(pseudo) => FieldKind::Pseudo(pseudo),
            NameClass::Te if value != b"trailers" => FieldKind::Malformed(FieldRule::ConnectionField),
            _ if is_spaced => FieldKind::SurroundedBySpace,
            _ => FieldKind::Regular,
        }
    }
}

/// RFC 9110 §5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.len() <= NAME_MAX && text.iter().all(is_tchar)
}

const DELETE: u8 = 0x7f;
/// Bytes of a name that the `http` crate can hold.
const NAME_MAX: usize = (1 << 16) - 1;

/// Judges the fields of one section in their order.
pub(super) struct SectionValidator {
    section: FieldSection,
    /// A bit for each pseudo-header field that has come.
    pseudo: u8,
    has_regular: bool,
    is_interim: bool,
    broken: Option<FieldRule>,
}

impl SectionValidator {
    pub(super) fn new(section: FieldSection) -> Self {
        Self { section, pseudo: 0, has_regular: false, is_interim: false, broken: None }
    }

    pub(super) fn judge(&mut self, kind: FieldKind) {
        let broken = match kind {
            FieldKind::Malformed(rule) => Some(rule),
            // A request with one is refused with a response, and recorded.
            FieldKind::SurroundedBySpace if self.section != FieldSection::Request => Some(FieldRule::WhiteSpace),
            FieldKind::Regular | FieldKind::SurroundedBySpace => {
                self.has_regular = true;
                None
            }
            FieldKind::Interim => {
                self.is_interim = true;
                self.pseudo(PseudoHeader::Status)
            }
            FieldKind::Pseudo(pseudo) => self.pseudo(pseudo),
        };
        self.broken = self.broken.or(broken);
    }

    fn pseudo(&mut self, pseudo: PseudoHeader) -> Option<FieldRule> {
        let bit = 1 << pseudo as u8;
        let is_of_section = match self.section {
            FieldSection::Request => pseudo != PseudoHeader::Status,
            FieldSection::Response => pseudo == PseudoHeader::Status,
            FieldSection::Trailers => false,
        };
        let is_repeated = self.pseudo & bit != 0;
        self.pseudo |= bit;
        (!is_of_section || is_repeated || self.has_regular).then_some(FieldRule::PseudoHeader)
    }

    /// Returns the first rule that was broken, and whether it is the head of an interim response.
    pub(super) fn end(self) -> (Option<FieldRule>, bool) {
        // What a request must have depends on its method: h2 knows.
        let has_status = self.pseudo & (1 << PseudoHeader::Status as u8) != 0;
        let is_missing = self.section == FieldSection::Response && !has_status;
        (self.broken.or(is_missing.then_some(FieldRule::PseudoHeader)), self.is_interim)
    }
}
