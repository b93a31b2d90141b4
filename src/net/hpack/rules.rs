//! The rules of RFC 9113 for the fields of one section: a message that breaks one is malformed (§8.1.1).
//! Which rule does a field break, and does it depend on where the field stands?

/// What a field section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Section {
    Request,
    Response,
    Trailers,
}

/// A rule that a field breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
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

impl Rule {
    pub const ALL: [Rule; 6] =
        [Rule::FieldName, Rule::FieldValue, Rule::WhiteSpace, Rule::ConnectionField, Rule::PseudoHeader, Rule::Status];

    /// Returns the word that names the rule in a refusal.
    pub fn as_str(self) -> &'static str {
        match self {
            Rule::FieldName => "field_name",
            Rule::FieldValue => "field_value",
            Rule::WhiteSpace => "field_white_space",
            Rule::ConnectionField => "connection_field",
            Rule::PseudoHeader => "pseudo_header",
            Rule::Status => "status",
        }
    }
}

/// What a name is, judged once: a block may name thousands of fields by one entry.
#[derive(Clone, Copy)]
pub(super) enum Class {
    Pseudo(Pseudo),
    /// RFC 9113 §8.2.2.
    Connection,
    Te,
    Regular,
    Malformed(Rule),
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Pseudo {
    Method,
    Scheme,
    Authority,
    Path,
    Protocol,
    Status,
}

/// What a field is, wherever it stands.
#[derive(Clone, Copy)]
pub(super) enum Kind {
    Regular,
    /// There is white space around its value.
    Spaced,
    Pseudo(Pseudo),
    /// `:status` of an interim response.
    Interim,
    Malformed(Rule),
}

impl Class {
    pub(super) fn of(name: &[u8]) -> Self {
        match name {
            b":method" => Class::Pseudo(Pseudo::Method),
            b":scheme" => Class::Pseudo(Pseudo::Scheme),
            b":authority" => Class::Pseudo(Pseudo::Authority),
            b":path" => Class::Pseudo(Pseudo::Path),
            b":protocol" => Class::Pseudo(Pseudo::Protocol),
            b":status" => Class::Pseudo(Pseudo::Status),
            [b':', ..] => Class::Malformed(Rule::PseudoHeader),
            b"connection" | b"keep-alive" | b"proxy-connection" | b"transfer-encoding" | b"upgrade" => {
                Class::Connection
            }
            b"te" => Class::Te,
            name if is_token(name) && !name.iter().any(u8::is_ascii_uppercase) => Class::Regular,
            _ => Class::Malformed(Rule::FieldName),
        }
    }

    /// Judges a field of this name.
    pub(super) fn judge(self, value: &[u8]) -> Kind {
        match self {
            Class::Malformed(rule) => return Kind::Malformed(rule),
            Class::Connection => return Kind::Malformed(Rule::ConnectionField),
            _ if !value.iter().all(|byte| *byte == b'\t' || (*byte >= b' ' && *byte != DELETE)) => {
                return Kind::Malformed(Rule::FieldValue);
            }
            _ => {}
        }
        let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
        let is_spaced = is_space(value.first()) || is_space(value.last());
        match self {
            Class::Pseudo(_) if is_spaced => Kind::Malformed(Rule::WhiteSpace),
            Class::Pseudo(Pseudo::Status) => match value {
                b"101" => Kind::Malformed(Rule::Status),
                [b'1', b'0'..=b'9', b'0'..=b'9'] => Kind::Interim,
                [b'2'..=b'9', b'0'..=b'9', b'0'..=b'9'] => Kind::Pseudo(Pseudo::Status),
                _ => Kind::Malformed(Rule::Status),
            },
            Class::Pseudo(Pseudo::Method) if !is_token(value) => Kind::Malformed(Rule::FieldValue),
            // h2 has no other text of a pseudo-header field.
            Class::Pseudo(_) if std::str::from_utf8(value).is_err() => Kind::Malformed(Rule::FieldValue),
            Class::Pseudo(pseudo) => Kind::Pseudo(pseudo),
            Class::Te if value != b"trailers" => Kind::Malformed(Rule::ConnectionField),
            _ if is_spaced => Kind::Spaced,
            _ => Kind::Regular,
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
pub(super) struct Judge {
    section: Section,
    /// A bit for each pseudo-header field that has come.
    pseudo: u8,
    has_regular: bool,
    is_interim: bool,
    broken: Option<Rule>,
}

impl Judge {
    pub(super) fn new(section: Section) -> Self {
        Self { section, pseudo: 0, has_regular: false, is_interim: false, broken: None }
    }

    pub(super) fn judge(&mut self, kind: Kind) {
        let broken = match kind {
            Kind::Malformed(rule) => Some(rule),
            // A request with one is refused with a response, and recorded.
            Kind::Spaced if self.section != Section::Request => Some(Rule::WhiteSpace),
            Kind::Regular | Kind::Spaced => {
                self.has_regular = true;
                None
            }
            Kind::Interim => {
                self.is_interim = true;
                self.pseudo(Pseudo::Status)
            }
            Kind::Pseudo(pseudo) => self.pseudo(pseudo),
        };
        self.broken = self.broken.or(broken);
    }

    fn pseudo(&mut self, pseudo: Pseudo) -> Option<Rule> {
        let bit = 1 << pseudo as u8;
        let is_of_section = match self.section {
            Section::Request => pseudo != Pseudo::Status,
            Section::Response => pseudo == Pseudo::Status,
            Section::Trailers => false,
        };
        let is_repeated = self.pseudo & bit != 0;
        self.pseudo |= bit;
        (!is_of_section || is_repeated || self.has_regular).then_some(Rule::PseudoHeader)
    }

    /// Returns the first rule that was broken, and whether it is the head of an interim response.
    pub(super) fn end(self) -> (Option<Rule>, bool) {
        // What a request must have depends on its method: h2 knows.
        let has_status = self.pseudo & (1 << Pseudo::Status as u8) != 0;
        let is_missing = self.section == Section::Response && !has_status;
        (self.broken.or(is_missing.then_some(Rule::PseudoHeader)), self.is_interim)
    }
}
