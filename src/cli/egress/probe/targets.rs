//! Reads the targets of `outgate egress probe --targets`: a list, or a CSV file with a header.
//! Which targets does an operator name, and to which customers do they belong?

use crate::config::parse_url;
use crate::names::{Target, escape_control_characters};

/// The longest line, in bytes.
const LINE_MAX: usize = 4096;
/// The most lines with targets.
const TARGETS_MAX: usize = 10_000;
/// The longest file, in bytes.
pub(super) const FILE_MAX: u64 = 16 << 20;

/// A line of the file.
#[derive(Clone, Debug)]
pub(super) struct ListedTarget {
    pub line: usize,
    /// The host of the target if the file names no customer.
    pub customer: String,
    /// A mail address.
    pub contact: Option<String>,
    /// The URL as written, which may contain a secret. Only the route is chosen by it.
    pub url: String,
    pub target: Target,
}

/// The columns that have a meaning.
const COLUMNS: [&str; 3] = ["url", "customer", "contact"];

/// Parses a file, and returns its targets and the names of unknown columns. The errors are those of all lines, and quote none
/// of them.
pub(super) fn parse(bytes: &[u8]) -> Result<(Vec<ListedTarget>, Vec<String>), Vec<String>> {
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(bytes);
    let is_comment = |line: &[u8]| line.trim_ascii_start().starts_with(b"#");
    let numbered = (1..).zip(bytes.split(|byte| *byte == b'\n')).filter(|(_, line)| !line.trim_ascii().is_empty());
    let mut lines = numbered.peekable();
    while lines.next_if(|(_, line)| is_comment(line)).is_some() {}
    let header = lines.peek().and_then(|(_, line)| read_header(line));
    if header.is_some() {
        lines.next();
    }
    let (mut targets, mut errors) = (Vec::new(), Vec::new());
    // In CSV, a customer's name may begin with `#`.
    for (line, text) in lines.filter(|(_, line)| header.is_some() || !is_comment(line)) {
        if targets.len() + errors.len() == TARGETS_MAX {
            errors.push(format!("line {line}: the file has more than {TARGETS_MAX} targets; divide it"));
            break;
        }
        match read_line(line, text, header.as_deref()) {
            Ok(target) => targets.push(target),
            Err(reason) => errors.push(format!("line {line}: {reason}")),
        }
    }
    if targets.is_empty() && errors.is_empty() {
        errors.push("the file has no target".to_owned());
    }
    let unknown = header.unwrap_or_default().into_iter().filter(|column| !COLUMNS.contains(&column.as_str()));
    let unknown = unknown.map(|column| escape_control_characters(&column)).collect();
    if errors.is_empty() { Ok((targets, unknown)) } else { Err(errors) }
}

/// Returns the columns of a CSV file; `None`: the line is no header.
fn read_header(line: &[u8]) -> Option<Vec<String>> {
    let cells = split_csv(std::str::from_utf8(line).ok()?).ok()?;
    let cells: Vec<_> = cells.iter().map(|cell| cell.to_ascii_lowercase()).collect();
    cells.iter().any(|cell| cell == "url").then_some(cells)
}

fn read_line(line: usize, text: &[u8], header: Option<&[String]>) -> Result<ListedTarget, &'static str> {
    if text.len() > LINE_MAX {
        return Err("the line is longer than 4096 bytes");
    }
    let text = std::str::from_utf8(text).map_err(|_| "the line is not UTF-8")?.trim();
    if text.contains(|c: char| c.is_control() && c != '\t') {
        return Err("the line has a control character");
    }
    let (url, customer, contact) = match header {
        None => {
            let (url, customer) = text.split_once([' ', '\t']).unwrap_or((text, ""));
            if url.contains(',') {
                return Err("the line has several cells: write the header `customer,url,contact` into the first line");
            }
            (url.to_owned(), customer.to_owned(), String::new())
        }
        Some(header) => {
            let cells = split_csv(text)?;
            if cells.len() != header.len() {
                return Err("the line has another number of cells than the header");
            }
            let cell = |name: &str| {
                let found = header.iter().zip(&cells).find(|(column, _)| *column == name);
                found.map(|(_, cell)| cell.clone()).unwrap_or_default()
            };
            (cell("url"), cell("customer"), cell("contact"))
        }
    };
    // The query may have another URL.
    let has_scheme = url.split_once("://").is_some_and(|(scheme, _)| !scheme.contains(['/', '?']));
    let url = if has_scheme { url } else { format!("https://{url}") };
    let authority = url.split(['/', '?']).nth(2).unwrap_or_default();
    if !authority.is_ascii() {
        return Err("the host is not ASCII: write the host in ASCII (xn--…)");
    }
    let (target, _) = parse_url(&url)?;
    let contact = Some(contact).filter(|contact| !contact.is_empty());
    if contact.as_deref().is_some_and(|contact| !is_mail_address(contact)) {
        return Err("the contact is not one mail address, such as ops@acme.example");
    }
    let customer = match customer.split_whitespace().collect::<Vec<_>>().join(" ") {
        empty if empty.is_empty() => target.host.to_string(),
        customer => customer,
    };
    Ok(ListedTarget { line, customer, contact, url, target })
}

/// Returns whether a text is one addr-spec of RFC 5322 without quoting, which is safe in a header field.
fn is_mail_address(text: &str) -> bool {
    let is_part = |part: &str| {
        let is_plain = |c: char| c.is_ascii_graphic() && !"()<>[]:;@\\,\"".contains(c);
        !part.is_empty() && part.chars().all(is_plain)
    };
    text.split_once('@').is_some_and(|(user, host)| is_part(user) && is_part(host))
}

/// Splits a line of CSV (RFC 4180). A quoted cell ends on its line.
fn split_csv(line: &str) -> Result<Vec<String>, &'static str> {
    let mut cells = Vec::new();
    let mut rest = Some(line.trim());
    while let Some(text) = rest {
        let Some(quoted) = text.trim_start().strip_prefix('"') else {
            let (cell, next) = text.split_once(',').map_or((text, None), |(cell, next)| (cell, Some(next)));
            cells.push(cell.trim().to_owned());
            rest = next;
            continue;
        };
        let (mut cell, mut quoted) = (String::new(), quoted);
        let next = loop {
            let (part, next) = quoted.split_once('"').ok_or("a quoted cell has no end")?;
            cell.push_str(part);
            match next.strip_prefix('"') {
                Some(more) => (cell.push('"'), quoted = more),
                None => break next.trim_start(),
            };
        };
        cells.push(cell.trim().to_owned());
        rest = match next.strip_prefix(',') {
            None if !next.is_empty() => return Err("a quoted cell is followed by other text"),
            next => next,
        };
    }
    Ok(cells)
}

/// Parses a file, and checks that nothing in it can leave its line or name a second recipient.
#[cfg(any(test, fuzzing))]
pub fn probe_targets(data: &[u8]) {
    for ListedTarget { customer, contact, url, target, .. } in parse(data).unwrap_or_default().0 {
        assert!(!customer.is_empty() && !customer.contains(char::is_control) && !url.contains(char::is_control));
        assert!(contact.is_none_or(|contact| contact.matches('@').count() == 1 && !contact.contains([',', ' ', '\n'])));
        assert!(parse_url(&target.to_string()).is_ok_and(|(again, _)| again == target));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn csv_lines_are_split_as_rfc_4180_says() {
        for (line, cells) in [
            ("a,b", vec!["a", "b"]),
            ("a,", vec!["a", ""]),
            ("\"a,b\",\"say \"\"c\"\"\"\r", vec!["a,b", "say \"c\""]),
            (" \"a\" , b", vec!["a", "b"]),
            ("\"\"", vec![""]),
        ] {
            assert_eq!(split_csv(line).unwrap(), cells, "{line}");
        }
        assert!(split_csv("\"a").is_err());
        assert!(split_csv("\"a\"b,c").is_err());
    }
}
