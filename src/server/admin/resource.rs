//! The resources of the admin listener, as the OpenAPI document describes them.
//! Which operation does a request name, and which role and parameters does the operation have?

use std::collections::BTreeMap;
use std::sync::LazyLock;

use http::{Method, StatusCode};
use serde::Deserialize;

use super::problem::AdminProblem;
use crate::config::AdminRole;

/// The description of the API.
pub(super) const OPENAPI: &str = include_str!("openapi.json");

static DOCUMENT: LazyLock<Document> =
    LazyLock::new(|| serde_json::from_str(OPENAPI).expect("a test reads this document"));

#[derive(Deserialize)]
struct Document {
    /// A last segment in braces stands for any segment.
    paths: BTreeMap<String, PathItem>,
}

/// The operations of a path.
#[derive(Deserialize)]
struct PathItem {
    get: Option<Operation>,
    post: Option<Operation>,
}

#[derive(Deserialize)]
pub(super) struct Operation {
    #[serde(rename = "operationId")]
    pub(super) id: String,
    /// `None`: no credential is required.
    #[serde(rename = "x-role")]
    pub(super) role: Option<AdminRole>,
    #[serde(default)]
    parameters: Vec<Parameter>,
}

#[derive(Deserialize)]
struct Parameter {
    name: String,
}

/// A resource that exists.
pub(super) struct Resource<'p> {
    pub(super) path: &'static str,
    item: &'static PathItem,
    /// The segment that stands for the braces.
    pub(super) segment: &'p str,
}

impl<'p> Resource<'p> {
    pub(super) fn find(path: &'p str) -> Result<Self, AdminProblem> {
        let segment = |template: &str| match template.split_once('{') {
            None => (template == path).then_some(""),
            Some((folder, _)) => path.strip_prefix(folder).filter(|rest| !rest.is_empty() && !rest.contains('/')),
        };
        let mut found =
            DOCUMENT.paths.iter().filter_map(|(path, item)| Some(Self { path, item, segment: segment(path)? }));
        let detail = "there is no such resource: /v1/openapi.json lists them";
        found.next().ok_or_else(|| AdminProblem::new(StatusCode::NOT_FOUND, detail))
    }

    pub(super) fn is_public(&self) -> bool {
        self.item.get.as_ref().is_some_and(|operation| operation.role.is_none())
    }

    /// Returns the operation of a method. HEAD is that of GET.
    pub(super) fn operation(&self, method: &Method) -> Result<&'static Operation, AdminProblem> {
        let PathItem { get, post } = self.item;
        let found = match *method {
            Method::GET | Method::HEAD => get.as_ref(),
            Method::POST => post.as_ref(),
            _ => None,
        };
        let methods = [get.as_ref().map(|_| "GET, HEAD"), post.as_ref().map(|_| "POST")];
        found.ok_or_else(|| AdminProblem::method(methods.into_iter().flatten().collect::<Vec<_>>().join(", ")))
    }
}

impl Operation {
    /// Parses the query. A resource without a role ignores parameters that it does not know, as scrapers may add some.
    pub(super) fn query(&self, query: Option<&str>) -> Result<Query, AdminProblem> {
        let mut found = BTreeMap::new();
        for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned() {
            let is_known = self.parameters.iter().any(|parameter| parameter.name == name);
            if self.role.is_some() && (!is_known || found.contains_key(&name)) {
                let detail =
                    if is_known { "the parameter occurs twice" } else { "this operation has no such parameter" };
                return Err(AdminProblem::field(&name, detail));
            }
            found.insert(name, value);
        }
        Ok(Query(found))
    }
}

/// The parameters of a request.
pub(super) struct Query(BTreeMap<String, String>);

impl Query {
    pub(super) fn text(&self, name: &str) -> Option<String> {
        self.0.get(name).cloned()
    }

    /// Returns the value of a parameter, read by `parse`. `expected` is the advice for a wrong one.
    pub(super) fn parse<T, E>(
        &self,
        name: &str,
        expected: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, AdminProblem> {
        let value = self.0.get(name).map(|value| parse(value)).transpose();
        value.map_err(|_| AdminProblem::field(name, expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_found_by_whole_segments() {
        for (path, expected) in [
            ("/v1/deliveries", Some(("/v1/deliveries", ""))),
            ("/v1/deliveries/ab", Some(("/v1/deliveries/{request_id}", "ab"))),
            ("/v1/deliveries/", None),
            ("/v1/deliveries/a/b", None),
            ("/v1/status/", None),
            ("/status", None),
            ("//", None),
        ] {
            let found = Resource::find(path).ok();
            assert_eq!(found.map(|found| (found.path, found.segment)), expected, "{path}");
        }
    }

    #[test]
    fn openapi_document_has_a_role_for_all_but_the_public_resources() {
        let operations = DOCUMENT.paths.values().flat_map(|item| item.get.iter().chain(&item.post));
        let public: Vec<_> = operations.filter(|operation| operation.role.is_none()).map(|found| &*found.id).collect();
        assert_eq!(public, ["keyDirectory", "health", "keys", "load", "metrics", "readiness"]);
    }

    #[test]
    fn query_of_an_operation_has_its_parameters_once_each() {
        let operation = Resource::find("/v1/diff").unwrap().operation(&Method::GET).unwrap();
        assert_eq!(operation.query(Some("number=4")).unwrap().text("number").as_deref(), Some("4"));
        assert!(operation.query(Some("number=4&number=5")).is_err() && operation.query(Some("entry=4")).is_err());
        let metrics = Resource::find("/metrics").unwrap().operation(&Method::HEAD).unwrap();
        assert!(metrics.query(Some("x=1&x=2")).is_ok(), "a scraper may add parameters");
    }
}
