//! Reads the section `notices`: the receivers of webhooks about changes of the ranges.
//! Which customers' systems learn of a change of the ranges?

use super::alerts::read_own_route;
use super::named_sections::read_word;
use super::reader::{Reader, Table};
use super::{Located, Route, SourceSpan, schema};

/// The name of the route that notices take, in records.
const ROUTE_NAME: &str = "notices";

#[derive(Clone, Debug)]
pub struct Notices {
    /// The URLs that get each change.
    pub webhooks: Vec<Located<String>>,
    /// The route of the webhooks, which no client's request takes.
    pub route: Located<Route>,
}

/// Has no receiver.
impl Default for Notices {
    fn default() -> Self {
        let span = SourceSpan::default();
        let route = Route::new(Located { value: ROUTE_NAME.to_owned(), span });
        Self { webhooks: Vec::new(), route: Located { value: route, span } }
    }
}

pub(super) fn read_notices(reader: &mut Reader<'_>, file: &Table<'_>) -> Notices {
    let table = file.section(reader, "notices", &schema::NOTICES);
    let webhooks = table.read_list(reader, "webhooks", None, read_word).unwrap_or_default();
    let span = webhooks.first().map_or(table.span, |webhook| webhook.span);
    let help = "add webhooks = [\"https://hooks.acme.example/egress\"]";
    let route = read_own_route(reader, &table, (ROUTE_NAME, span), ("webhooks", help));
    Notices { webhooks, route }
}
