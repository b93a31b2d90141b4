//! The table of the formats of the list, `formats.toml`.
//! In which formats can a firewall team get the ranges?

use std::sync::LazyLock;

use serde::Deserialize;

use super::template::{Renderer, Section};
use super::{EgressList, document};

/// A format of the list.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Format {
    pub name: String,
    /// The name of its file in a publication.
    pub file: String,
    /// The product that reads the format, and how.
    pub usage: String,
    media_type: Option<String>,
    /// The start and the end of a comment; empty: the format has no comments.
    #[serde(default = "hash_comment")]
    comment: Vec<String>,
    #[serde(default)]
    head: String,
    #[serde(default)]
    sections: Vec<Section>,
    #[serde(default)]
    foot: String,
    /// The name of the function that makes the document, in place of the template.
    document: Option<String>,
}

#[derive(Deserialize)]
struct Table {
    formats: Vec<Format>,
}

/// The comment at the start of each format that has comments.
const COMMENT: &str =
    "Source addresses of webhooks, <scope>: serial <serial>, changed <date>, <count> CIDRs. Allow them all.";

/// Every format, in the order of the documents.
pub static FORMATS: LazyLock<Vec<Format>> = LazyLock::new(|| {
    let table: Table = toml::from_str(include_str!("formats.toml")).expect("a test reads this table");
    table.formats
});

fn hash_comment() -> Vec<String> {
    vec!["# ".to_owned(), String::new()]
}

impl Format {
    pub fn find(name: &str) -> Option<&'static Format> {
        FORMATS.iter().find(|format| format.name == name)
    }

    pub fn media_type(&self) -> &str {
        let default = if self.document.is_some() { "application/json" } else { "text/plain; charset=utf-8" };
        self.media_type.as_deref().unwrap_or(default)
    }

    pub fn render(&self, list: &EgressList) -> String {
        if let Some(make) = self.document.as_deref().and_then(document::find) {
            return make(list);
        }
        let mut renderer = Renderer::new(list);
        if let [start, end] = &*self.comment {
            [COMMENT, &self.usage].iter().for_each(|line| {
                [start, *line, end, "\n"].iter().for_each(|part| renderer.text(part));
            });
        }
        renderer.text(&self.head);
        self.sections.iter().for_each(|section| renderer.section(section));
        renderer.text(&self.foot);
        renderer.finish()
    }
}
