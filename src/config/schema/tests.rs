//! `config.schema.json`: the JSON Schema of the configuration, made from what the parser asks of each key.
//! Which values may a key have, so that an editor can complete and check them?
//!
//! The tests read `config.toml.example` with every setting, and [`observe`] notes each question of the parser: the keys
//! of the schema, the type, the words of a choice, the range of a number. There is no second list of keys. The
//! descriptions are the comments of the example. This command writes the file again:
//! `BLESS=1 cargo test --lib config::schema`.

pub(in crate::config) mod observe;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::{Map, Value, json};

use super::{FILE, SCHEMAS, Schema};
use observe::{Question, Shape};

/// Values in the other forms that the parser accepts, which the example does not show.
const OTHER_FORMS: &str = r#"
[server]
listen = [{ address = "127.0.0.1:1", tls = { certificate = "a", key = "b" } }]
proxy_protocol = true
[egress.default]
ranges = [{ cidr = "192.0.2.0/28" }]
[guard]
allow = ["192.0.2.0/28"]
deny = ["192.0.2.0/28"]
[log]
rotate = false
[resolver]
servers = ["192.0.2.53"]
hosts = { "hooks.acme.example" = ["192.0.2.1"] }
[credentials.a]
type = "oauth2"
parameters = { resource = "a" }
[publish]
listen = ["127.0.0.1:1"]
[[routes]]
name = "a"
hosts = ["*"]
split = { percent = 1, timeouts = { dns = "3s" } }
"#;

/// The questions of the parser about the value of a key, and about the values below it if its keys are names.
#[derive(Default)]
struct Slot {
    shapes: BTreeSet<Shape>,
    is_map: bool,
    members: BTreeSet<Shape>,
}

/// The observations, by table and key.
#[derive(Default)]
struct Observed {
    slots: BTreeMap<(&'static str, String), Slot>,
    required: BTreeMap<&'static str, BTreeSet<String>>,
}

/// Returns the example with its optional settings, which are lines that start with # and no space.
fn example_with_all_settings() -> String {
    let example = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml.example"));
    let setting = |line: &'static str| match line.strip_prefix('#') {
        Some(setting) if !setting.is_empty() && !setting.starts_with(' ') => setting,
        _ => line,
    };
    example.lines().map(|line| setting(line).to_owned() + "\n").collect()
}

/// Returns what the parser asks while it reads `texts`. The files that they name do not exist, which ends nothing.
fn observed(texts: &[&str]) -> Observed {
    let questions = observe::during(|| {
        for text in texts {
            drop(crate::config::parse(text, Path::new("/nonexistent/config.toml")));
        }
    });
    let mut tables: BTreeMap<&str, &'static Schema> = BTreeMap::new();
    let mut maps: BTreeMap<String, &str> = BTreeMap::new();
    let mut opened: BTreeMap<&'static str, Vec<(&str, BTreeSet<&str>)>> = BTreeMap::new();
    for question in &questions {
        match question {
            Question::Table(key, schema) => {
                tables.insert(key, schema);
                opened.entry(schema.path).or_default().push((key, BTreeSet::new()));
            }
            Question::Members(key, names) => {
                maps.extend(names.iter().map(|name| (format!("{key}.{name}"), key.as_str())));
            }
            Question::Required(key, required) => {
                let of_kind = tables.get(key.as_str()).and_then(|schema| opened.get_mut(schema.path));
                let table = of_kind.and_then(|tables| tables.iter_mut().rfind(|(opened, _)| opened == key));
                // A section that is not written has no key that it needs.
                if let Some((_, table)) = table {
                    table.insert(required);
                }
            }
            Question::Shape(..) => {}
        }
    }
    let slot_of = |key: &str| {
        let parents = tables.iter().filter_map(|(table, schema)| {
            let rest = if table.is_empty() { Some(key) } else { key.strip_prefix(table)?.strip_prefix('.') };
            rest.filter(|rest| schema.contains(rest)).map(|rest| (schema.path, rest.to_owned()))
        });
        parents.max_by_key(|(_, rest)| std::cmp::Reverse(rest.len())).unwrap_or_else(|| panic!("{key} is in no table"))
    };
    let mut found = Observed::default();
    let mut note = |key: &str, shape: Shape| match maps.get(key) {
        Some(map) => drop(found.slots.entry(slot_of(map)).or_default().members.insert(shape)),
        None if key.is_empty() => {}
        None => drop(found.slots.entry(slot_of(key)).or_default().shapes.insert(shape)),
    };
    for question in &questions {
        match question {
            Question::Shape(key, shape) => note(key, shape.clone()),
            Question::Table(key, schema) => note(key, Shape::Table(schema.path)),
            Question::Members(..) | Question::Required(..) => {}
        }
    }
    for question in &questions {
        if let Question::Members(key, _) = question {
            found.slots.entry(slot_of(key)).or_default().is_map = true;
        }
    }
    // A key that only some tables of a kind need, such as the `password` of a credential, is not required.
    for (path, tables) in opened {
        let required =
            tables.into_iter().map(|(_, required)| required).reduce(|all, table| &all & &table).unwrap_or_default();
        found.required.insert(path, required.into_iter().map(str::to_owned).collect());
    }
    found
}

fn definition(path: &str) -> String {
    if path.is_empty() { "#".to_owned() } else { format!("#/definitions/{}", path.replace('*', "NAME")) }
}

/// Returns the schema of a value that has one of the shapes.
fn any_of(shapes: &BTreeSet<Shape>) -> Value {
    let is_said_better = |shape: &Shape| *shape == Shape::Text(None) && shapes.len() > 1;
    assert!(!shapes.is_empty(), "write an item of an empty list into OTHER_FORMS");
    let mut forms: Vec<Value> = shapes.iter().filter(|shape| !is_said_better(shape)).map(form).collect();
    if forms.len() == 1 { forms.remove(0) } else { json!({ "anyOf": forms }) }
}

fn form(shape: &Shape) -> Value {
    match shape {
        Shape::Text(None) => json!({ "type": "string" }),
        Shape::Text(Some(expected)) => json!({ "type": "string", "title": expected }),
        Shape::Choice(words) => json!({ "type": "string", "enum": words }),
        Shape::Boolean => json!({ "type": "boolean" }),
        Shape::Integer(low, high) => json!({ "type": "integer", "minimum": low, "maximum": high }),
        Shape::Decimal(max) => json!({ "type": "number", "minimum": 0, "maximum": max }),
        Shape::Table(path) => json!({ "$ref": definition(path) }),
        Shape::List { .. } => unreachable!("the parser reads no list of lists"),
    }
}

impl Slot {
    fn to_json(&self) -> Value {
        let is_list = |shape: &&Shape| matches!(shape, Shape::List { .. });
        let items: BTreeSet<Shape> = self.shapes.iter().filter(|shape| !is_list(shape)).cloned().collect();
        if self.is_map {
            assert!(!self.members.is_empty(), "write a member into OTHER_FORMS");
            return json!({ "type": "object", "additionalProperties": Slot::list_or_one(&self.members) });
        }
        if items.len() < self.shapes.len() { Slot::list_or_one(&self.shapes) } else { any_of(&items) }
    }

    /// Returns the schema of a list if one of the shapes is a list. The others are then those of its items.
    fn list_or_one(shapes: &BTreeSet<Shape>) -> Value {
        let (lists, items): (BTreeSet<Shape>, BTreeSet<Shape>) =
            shapes.iter().cloned().partition(|shape| matches!(shape, Shape::List { .. }));
        let least = usize::from(lists.contains(&Shape::List { not_empty: true }));
        match lists.is_empty() {
            true => any_of(&items),
            false if least == 0 => json!({ "type": "array", "items": any_of(&items) }),
            false => json!({ "type": "array", "items": any_of(&items), "minItems": least }),
        }
    }
}

/// Returns the comment of each table and key of the example, as a dotted path with * for a name.
fn descriptions() -> BTreeMap<String, String> {
    let example = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml.example"));
    let (mut found, mut table, mut comment) = (BTreeMap::new(), String::new(), Vec::new());
    for line in example.lines() {
        if let Some(text) = line.strip_prefix("# ") {
            comment.push(text);
            continue;
        }
        let setting = line.strip_prefix('#').unwrap_or(line);
        let path = if setting.starts_with('[') {
            let name = setting.trim_matches(['[', ']']);
            table = name.rsplit_once('.').map_or(name.to_owned(), |(kind, _)| format!("{kind}.*"));
            Some(table.clone())
        } else {
            let key = setting.split_once(" = ").map(|(key, _)| key).filter(|key| !key.starts_with(['{', ' ', '"']));
            key.map(|key| if table.is_empty() { key.to_owned() } else { format!("{table}.{key}") })
        };
        if let (Some(path), false) = (path, comment.is_empty() || comment.concat().starts_with("As above")) {
            found.entry(path).or_insert(comment.join(" "));
        }
        comment.clear();
    }
    found
}

/// Returns the schema of one kind of table.
fn table_schema(schema: &Schema, observed: &Observed, comments: &BTreeMap<String, String>) -> Map<String, Value> {
    let property = |key: &&str| {
        let slot = observed.slots.get(&(schema.path, (*key).to_owned()));
        let slot = slot.unwrap_or_else(|| panic!("{}.{key}: write it into OTHER_FORMS", schema.path));
        let path = if schema.path.is_empty() { (*key).to_owned() } else { format!("{}.{key}", schema.path) };
        // The keys of a small table are described in the comment of the table.
        let comment = comments.get(&path).or_else(|| comments.get(&format!("{path}.*")));
        let comment = comment.or_else(|| comments.get(schema.path)).unwrap_or_else(|| panic!("{path} has no comment"));
        let mut value = slot.to_json();
        if value.get("$ref").is_some() {
            // Draft 7 ignores everything beside `$ref`.
            value = json!({ "allOf": [value] });
        }
        value["description"] = comment.as_str().into();
        ((*key).to_owned(), value)
    };
    let properties: Map<String, Value> = schema.keys.iter().map(property).collect();
    let mut found = Map::new();
    found.insert("type".into(), "object".into());
    found.insert("additionalProperties".into(), false.into());
    found.insert("properties".into(), properties.into());
    let required = &observed.required[schema.path];
    if !required.is_empty() {
        found.insert("required".into(), json!(required));
    }
    found
}

fn json_schema() -> Value {
    let (all, comments) = (example_with_all_settings(), descriptions());
    let observed = observed(&[&all, OTHER_FORMS]);
    let tables = SCHEMAS.iter().filter(|schema| !schema.path.is_empty());
    let definitions = tables
        .map(|schema| (schema.path.replace('*', "NAME"), Value::from(table_schema(schema, &observed, &comments))));
    let definitions: Map<String, Value> = definitions.collect();
    let mut file = table_schema(&FILE, &observed, &comments);
    file.insert("$schema".into(), "http://json-schema.org/draft-07/schema#".into());
    file.insert("title".into(), "The configuration of outgate".into());
    file.insert("definitions".into(), definitions.into());
    file.into()
}

#[test]
fn json_schema_is_generated_from_the_keys_of_the_parser() {
    let made = format!("{:#}\n", json_schema());
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("config.schema.json");
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &made).expect("the schema is written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    let differs = written.lines().zip(made.lines()).find(|(written, made)| written != made);
    assert!(written == made, "the schema differs: write it again with BLESS=1: {differs:?}");
}

#[test]
fn json_schema_has_the_types_words_and_required_keys_of_the_parser() {
    let schema = json_schema();
    let route = &schema["definitions"]["routes"];
    assert_eq!(route["required"], json!(["hosts", "name"]));
    assert_eq!(route["properties"]["connect"]["enum"], json!(["tunnel", "inspect", "refuse"]));
    assert_eq!(route["properties"]["hosts"]["minItems"], 1);
    assert_eq!(route["properties"]["ports"]["items"]["maximum"], 65_535);
    assert_eq!(route["properties"]["timeouts"]["allOf"][0]["$ref"], "#/definitions/routes.timeouts");
    let egress = &schema["properties"]["egress"]["additionalProperties"];
    assert_eq!(egress["$ref"], "#/definitions/egress.NAME");
    assert_eq!(schema["definitions"]["credentials.NAME"]["required"], json!(["type"]), "a type needs further keys");
    assert_eq!(schema["definitions"]["log"]["properties"]["sample"]["type"], "number");
    let hosts = &schema["definitions"]["resolver"]["properties"]["hosts"];
    assert_eq!(hosts["additionalProperties"]["items"]["type"], "string");
    let rotate = &schema["definitions"]["log"]["properties"]["rotate"]["anyOf"];
    assert_eq!(rotate, &json!([{ "type": "boolean" }, { "$ref": "#/definitions/log.rotate" }]));
}
