//! Reading of Rust and Markdown for the architecture rules, without a parser.
//! Which code does a file contain outside its comments and strings, and which modules of the crate does it use?

use std::fs;
use std::path::{Path, PathBuf};

/// A source file: as written; without comments and the content of literals; and without its tests as well.
pub(crate) struct File {
    pub(crate) path: String,
    pub(crate) text: String,
    pub(crate) code: String,
    pub(crate) production: String,
}

impl File {
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let code = blank_literals(text);
        let production = if path.ends_with("tests.rs") { String::new() } else { blank_tests(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, production }
    }

    /// Returns the module path: `src/policy/sign/hmac.rs` is `policy`, `sign`, `hmac`, and `mod.rs` is its folder.
    pub(crate) fn module(&self) -> Vec<String> {
        let path = self.path.trim_start_matches("src/").trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').map(str::to_owned).collect()
    }

    pub(crate) fn top_module(&self) -> String {
        self.module().swap_remove(0)
    }

    /// Returns every path into this crate in `text` (the file's code, or its production code), from the crate's root, with
    /// its line.
    pub(crate) fn uses(&self, text: &str) -> Vec<(usize, Vec<String>)> {
        let mut found = Vec::new();
        for (start, _) in text.match_indices("crate::").chain(text.match_indices("outgate::")) {
            if begins_word(text, start) && !text[..start].ends_with(':') {
                let after = start + text[start..].find("::").expect("just matched") + 2;
                expand(&text[after..], &mut Vec::new(), &mut |path| found.push((line_of(text, start), path)));
            }
        }
        for (start, _) in text.match_indices("super::") {
            if !begins_word(text, start) || text[..start].ends_with("::") {
                continue;
            }
            let mut above = self.module();
            if self.production.get(start..start + 5) != Some("super") {
                above.push("tests".to_owned());
            }
            let mut rest = &text[start..];
            while let Some(outer) = rest.strip_prefix("super::") {
                (rest, _) = (outer, above.pop());
            }
            expand(rest, &mut above, &mut |path| found.push((line_of(text, start), path)));
        }
        found
    }

    /// Returns the names that the file re-exports from its own modules, each with the path of the item.
    pub(crate) fn reexports(&self) -> Vec<(Vec<String>, Vec<String>)> {
        let mut found = Vec::new();
        for statement in self.production.split(';') {
            let Some((before, tree)) = statement.rsplit_once("use ") else { continue };
            let before = before.trim_end();
            if !(before.ends_with("pub") || before.rsplit_once("pub(").is_some_and(|(_, scope)| scope.ends_with(')'))) {
                continue;
            }
            let mut prefix = if tree.starts_with("crate::") { Vec::new() } else { self.module() };
            let tree = tree.trim_start_matches("crate::").trim_start_matches("self::");
            expand(tree, &mut prefix, &mut |path| {
                let name = [self.module(), path[path.len() - 1..].to_vec()].concat();
                found.push((name, path));
            });
        }
        found
    }
}

/// Expands the use tree at the beginning of `text`, below `prefix`. Returns its length.
fn expand(text: &str, prefix: &mut Vec<String>, found: &mut dyn FnMut(Vec<String>)) -> usize {
    let depth = prefix.len();
    let mut at = text.len() - text.trim_start().len();
    if text[at..].starts_with('{') {
        at += 1;
        while !text[at..].trim_start().starts_with('}') && at < text.len() {
            at += expand(&text[at..], prefix, found);
            at += text[at..].find([',', '}']).unwrap_or(text.len() - at);
            at += usize::from(text[at..].starts_with(','));
        }
        return text[at..].find('}').map_or(text.len(), |end| at + end + 1);
    }
    let name: String = text[at..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    at += name.len();
    if !name.is_empty() && name != "self" {
        prefix.push(name);
    }
    if let Some(rest) = text[at..].strip_prefix("::") {
        at += 2 + expand(rest, prefix, found);
    } else if !prefix.is_empty() {
        found(prefix.clone());
    }
    prefix.truncate(depth);
    at
}

/// Replaces comments and the content of string and character literals with spaces.
fn blank_literals(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let hashes = rest.iter().skip(1).take_while(|b| **b == b'#').count();
        let end = if rest.starts_with(b"//") {
            rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        } else if rest.starts_with(b"/*") {
            position(rest, b"*/").map_or(rest.len(), |end| end + 2)
        } else if rest[0] == b'r' && rest.get(1 + hashes) == Some(&b'"') {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let from = 2 + hashes;
            position(&rest[from..], &close).map_or(rest.len(), |end| from + end + close.len())
        } else if rest[0] == b'"' {
            let mut end = 1;
            while end < rest.len() && rest[end] != b'"' {
                end += 1 + usize::from(rest[end] == b'\\');
            }
            (end + 1).min(rest.len())
        } else if rest.starts_with(b"'\\") {
            rest.iter().skip(3).position(|b| *b == b'\'').map_or(rest.len(), |end| end + 4)
        } else if rest[0] == b'\'' && text[at + 1..].chars().nth(1) == Some('\'') {
            2 + text[at + 1..].chars().next().map_or(0, char::len_utf8)
        } else {
            at += 1;
            continue;
        };
        blank(&mut out[at..at + end]);
        at += end;
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Replaces items with `#[cfg(test)]` with spaces.
fn blank_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = code.as_bytes().to_vec();
    for (start, _) in code.match_indices(MARK) {
        let mut depth = 0;
        let mut end = out.len();
        for (at, byte) in code.bytes().enumerate().skip(start + MARK.len()) {
            depth += i32::from(byte == b'{') - i32::from(byte == b'}');
            // A `use` list also has braces and ends at its semicolon, which ends both.
            if depth == 0 && (byte == b'}' || byte == b';') {
                end = at + 1;
                break;
            }
        }
        blank(&mut out[start..end]);
    }
    String::from_utf8(out).expect("only whole characters were blanked")
}

fn blank(bytes: &mut [u8]) {
    bytes.iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// Returns the lines with `word` as a whole word.
pub(crate) fn find<'a>(text: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let ends = |end: usize| !text[end..].starts_with(|c: char| c.is_alphanumeric() || c == '_');
    text.match_indices(word)
        .filter(move |(start, _)| begins_word(text, *start) && ends(start + word.len()))
        .map(|(start, _)| line_of(text, start))
}

fn begins_word(text: &str, start: usize) -> bool {
    !text[..start].ends_with(|c: char| c.is_alphanumeric() || c == '_')
}

fn line_of(text: &str, at: usize) -> usize {
    text[..at].matches('\n').count() + 1
}

/// Returns the fenced lines and the inline code of a Markdown text.
pub(crate) fn snippets(document: &str) -> Vec<&str> {
    let mut fenced = false;
    let mut found = Vec::new();
    for line in document.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced {
            found.push(line.trim());
        } else {
            found.extend(line.split('`').skip(1).step_by(2));
        }
    }
    found
}

pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub(crate) fn sources() -> Vec<File> {
    let mut files = Vec::new();
    let mut folders = vec![root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a readable folder") {
            let path: PathBuf = entry.expect("a readable entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).expect("below the root").display().to_string();
                files.push(File::new(&name, &fs::read_to_string(&path).expect("readable source")));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}
