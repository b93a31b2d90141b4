//! The readings of a path: how servers interpret dot segments, escapes, backslashes and empty segments.
//! Which paths can this path mean to the server that receives it?
//!
//! Servers apply these steps in different orders and numbers. So the readings of a path are the results of every
//! sequence of steps. RFC 3986 §5.2.4 and §6.2.2 define two of the steps; servers implement the others beyond them.

use std::collections::{HashSet, VecDeque};

use crate::policy::percent::unescape;

/// The maximum total size in bytes of the readings of one path. Ordinary paths need a few hundred.
const READINGS_MAX: usize = 256 << 10;

type Path = Vec<u8>;

/// A transformation that servers apply to paths, with its name in refusals.
type Step = (&'static str, fn(&[u8]) -> Path);

const STEPS: [Step; 11] = [
    ("dot segments removed", |path| remove_dot_segments(path, true)),
    ("percent-decoded", |path| decode(path, |_| true)),
    ("unreserved characters decoded", |path| decode(path, is_unreserved)),
    ("encoded slashes decoded", |path| decode(path, |byte| matches!(byte, b'/' | b'\\'))),
    ("backslashes read as slashes", |path| path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()),
    ("repeated slashes merged", merge_slashes),
    ("path parameters removed", remove_parameters),
    // `path.Clean` of Go and `normpath` of Python work so.
    ("dot segments removed without a trailing slash", |path| remove_dot_segments(path, false)),
    ("overlong UTF-8 decoded", decode_overlong),
    ("read as a network-path reference", remove_authority),
    ("cut at a decoded `?`, `#` or NUL", cut_at_decoded_end),
];

/// Another path that a server may read.
pub(super) struct Reading {
    pub(super) path: Path,
    /// The steps that lead to it, in their order.
    pub(super) steps: Vec<&'static str>,
}

/// The path has more readings than [`READINGS_MAX`] allows.
#[derive(Debug)]
pub(super) struct TooManyReadings;

/// Returns every reading of `path` other than itself, those of the fewest steps first.
pub(super) fn readings(path: &[u8]) -> impl Iterator<Item = Result<Reading, TooManyReadings>> {
    let mut queue = VecDeque::new();
    let mut seen = HashSet::new();
    if !is_plain(path) {
        seen.insert(path.to_vec());
        queue.push_back(Reading { path: path.to_vec(), steps: Vec::new() });
    }
    let mut found = VecDeque::new();
    let mut bytes = 0;
    std::iter::from_fn(move || {
        while found.is_empty() {
            let from = queue.pop_front()?;
            for (name, step) in STEPS {
                let path = step(&from.path);
                if seen.contains(&path) {
                    continue;
                }
                bytes += path.len();
                if bytes > READINGS_MAX {
                    queue.clear();
                    found.push_back(Err(TooManyReadings));
                    break;
                }
                seen.insert(path.clone());
                let steps = [from.steps.as_slice(), &[name]].concat();
                queue.push_back(Reading { path: path.clone(), steps: steps.clone() });
                found.push_back(Ok(Reading { path, steps }));
            }
        }
        found.pop_front()
    })
}

/// Returns whether no step changes the path. Most paths are plain and cost only this check.
fn is_plain(path: &[u8]) -> bool {
    let is_special = |byte: &u8| matches!(byte, b'%' | b'\\' | b';') || !byte.is_ascii();
    !path.iter().any(is_special)
        && !path.windows(2).any(|pair| pair == b"//")
        && !path.split(|byte| *byte == b'/').any(is_dot_segment)
}

fn is_dot_segment(segment: &[u8]) -> bool {
    matches!(segment, b"." | b"..")
}

/// Removes dot segments (RFC 3986 §5.2.4). `trailing`: a dot segment at the end leaves its slash.
fn remove_dot_segments(path: &[u8], trailing: bool) -> Path {
    let Some(rest) = path.strip_prefix(b"/") else { return path.to_vec() };
    let segments: Vec<&[u8]> = rest.split(|byte| *byte == b'/').collect();
    if !segments.iter().any(|segment| is_dot_segment(segment)) {
        return path.to_vec();
    }
    let mut kept: Vec<&[u8]> = Vec::new();
    for segment in &segments {
        match *segment {
            b"." => {}
            b".." => drop(kept.pop()),
            segment => kept.push(segment),
        }
    }
    if trailing && segments.last().is_some_and(|last| is_dot_segment(last)) {
        kept.push(b"");
    }
    [b"/", kept.join(&b'/').as_slice()].concat()
}

/// Decodes once each escape of a byte that `decodes` accepts.
fn decode(path: &[u8], decodes: fn(u8) -> bool) -> Path {
    unescape(path, |escape| decodes(escape.byte)).map(|(_, byte)| byte).collect()
}

/// Returns whether a byte is unreserved (RFC 3986 §2.3).
fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

/// Decodes ASCII in two to four bytes of UTF-8, such as `C0 AE` for a dot. RFC 3629 §3 forbids it, but some decoders
/// accept it.
fn decode_overlong(path: &[u8]) -> Path {
    let mut decoded = Path::with_capacity(path.len());
    let mut rest = path;
    loop {
        rest = match rest {
            [lead @ (0xC0 | 0xC1), low @ 0x80..=0xBF, after @ ..]
            | [0xE0, lead @ (0x80 | 0x81), low @ 0x80..=0xBF, after @ ..]
            | [0xF0, 0x80, lead @ (0x80 | 0x81), low @ 0x80..=0xBF, after @ ..] => {
                decoded.push((lead & 1) << 6 | (low & 0x3F));
                after
            }
            [first, after @ ..] => {
                decoded.push(*first);
                after
            }
            [] => return decoded,
        }
    }
}

/// Cuts the path at a decoded `?`, `#` or NUL. A server that decodes before it parses reads a query or fragment there;
/// a server in C reads the end of the text. Only decoding produces these bytes in a path.
fn cut_at_decoded_end(path: &[u8]) -> Path {
    let end = path.iter().position(|byte| matches!(byte, b'?' | b'#' | 0));
    path[..end.unwrap_or(path.len())].to_vec()
}

fn merge_slashes(path: &[u8]) -> Path {
    let mut merged = path.to_vec();
    merged.dedup_by(|one, before| (*one, *before) == (b'/', b'/'));
    merged
}

/// Removes a `;` and the rest of its segment, as servlet containers do before they resolve dot segments.
fn remove_parameters(path: &[u8]) -> Path {
    let segments = path.split(|byte| *byte == b'/');
    let bare = segments.map(|segment| segment.split(|byte| *byte == b';').next().unwrap_or_default());
    bare.collect::<Vec<_>>().join(&b'/')
}

/// Removes an authority: `//a/b` is `/b` of the host `a` to a parser of URL references (RFC 3986 §4.2).
fn remove_authority(path: &[u8]) -> Path {
    match path.strip_prefix(b"//") {
        Some(rest) => match rest.iter().position(|byte| *byte == b'/') {
            Some(slash) => rest[slash..].to_vec(),
            None => b"/".to_vec(),
        },
        None => path.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(path: &str) -> Vec<String> {
        readings(path.as_bytes()).map(|found| String::from_utf8_lossy(&found.unwrap().path).into_owned()).collect()
    }

    #[test]
    fn readings_of_a_plain_path_are_empty() {
        for path in ["/", "/in", "/in/x.y/...", "/in/.x/..y/z~", "*", ""] {
            assert_eq!(all(path), [""; 0], "{path}");
        }
    }

    #[test]
    fn readings_find_dot_segments_in_every_encoding() {
        for dots in [
            "..",
            "%2e%2e",
            ".%2E",
            "%2e.",
            "%252e%252e",
            "%25252e.",
            "..;",
            "..;a=b",
            "%2e%2e;x",
            "%c0%ae%c0%ae",
            "%e0%80%ae.",
            "%f0%80%80%ae%f0%80%80%AE",
            "%u002e%u002e",
        ] {
            for slash in [
                "/",
                "%2f",
                "%2F",
                "%252f",
                "\\",
                "%5c",
                "%255C",
                "//",
                "/./",
                "%c0%af",
                "%c1%9c",
                "%f0%80%80%af",
                "%f0%80%81%9c",
            ] {
                let path = format!("/in{slash}{dots}{slash}admin");
                assert!(all(&path).contains(&"/admin".to_owned()), "{path}: {:?}", all(&path));
            }
        }
    }

    #[test]
    fn a_path_is_cut_at_a_decoded_question_mark_number_sign_or_nul() {
        for end in ["%3F", "%3f", "%23", "%00", "%253f", "%2523", "%2500", "%u003f", "%c0%80"] {
            for rest in ["", "/", "/x", "a=b"] {
                let path = format!("/in/admin/x/..{end}{rest}");
                assert!(all(&path).contains(&"/in/admin/".to_owned()), "{path}: {:?}", all(&path));
            }
        }
        assert!(all("/in/secret%00.json").contains(&"/in/secret".to_owned()));
    }

    #[test]
    fn readings_cover_each_treatment_of_empty_segments() {
        let found = all("//in//../x");
        for reading in ["/in/../x", "/x", "//in/x", "/in/x"] {
            assert!(found.contains(&reading.to_owned()), "{reading}: {found:?}");
        }
        assert!(all("/in/x/..").contains(&"/in".to_owned()));
    }

    #[test]
    fn readings_decode_overlong_bytes_that_are_not_escaped() {
        let found: Vec<_> = readings(b"/in/\xC0\xAE\xC0\xAE/x").map(|found| found.unwrap().path).collect();
        assert!(found.contains(&b"/x".to_vec()), "{found:?}");
        let only: Vec<_> = readings(b"\xC0\xAE").map(|found| found.unwrap().path).collect();
        assert_eq!(only, [b"."]);
    }

    /// A server may decode unreserved characters only (RFC 3986 §6.2.2.2), which leaves an escaped slash as it is.
    #[test]
    fn readings_cover_servers_that_decode_unreserved_characters_only() {
        let found = all("/%61%2Db%2Fc");
        for reading in ["/a-b%2Fc", "/a-b/c"] {
            assert!(found.contains(&reading.to_owned()), "{reading}: {found:?}");
        }
    }

    /// Parsers of URL references take what follows `//` as a host.
    #[test]
    fn readings_cover_servers_that_take_the_first_segment_as_a_host() {
        assert!(all("//in/admin/x").contains(&"/admin/x".to_owned()));
        assert!(all("//in").contains(&"/".to_owned()));
        assert_eq!(all("//"), ["/"]);
    }

    #[test]
    fn readings_stop_at_the_limit() {
        let path = format!("/%{}2e", "25".repeat(1000));
        assert!(readings(path.as_bytes()).any(|found| found.is_err()));
    }

    proptest! {
        /// The search ends within its bound for every path.
        #[test]
        fn readings_stay_within_their_byte_limit(path in "/([a-b./\\\\;%]|%2e|%2f|%5c|%25|%c0%ae|%u002f|%3f|%00){0,40}") {
            let bytes: usize = readings(path.as_bytes()).map_while(Result::ok).map(|found| found.path.len()).sum();
            prop_assert!(bytes <= READINGS_MAX);
        }
    }
}
