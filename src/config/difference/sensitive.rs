//! The changes that have a record of their own in the audit log: of keys, tokens, logs and captures.
//! Which changes concern who may send, who can be proved, and what is recorded?

/// The kind of a sensitive change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sensitivity {
    Key,
    Token,
    Log,
    Audit,
    Capture,
}

/// The part of a table that changes.
#[derive(Clone, Copy)]
pub(super) enum Subject<'a> {
    /// The table is added or removed.
    Table,
    Key(&'a str),
    /// The content of a file that the table names.
    File,
}

/// The sensitive changes of one resource.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ResourceChanges {
    pub listed: Vec<String>,
    /// The number of changes that are not listed.
    pub more: usize,
}

impl ResourceChanges {
    const LISTED_MAX: usize = 20;

    pub(super) fn push(&mut self, change: impl Fn() -> String) {
        if self.listed.len() < Self::LISTED_MAX {
            self.listed.push(change());
        } else {
            self.more += 1;
        }
    }
}

/// Returns the kind of a change of `table`, if it is sensitive.
pub(super) fn sensitivity(table: &str, subject: Subject<'_>) -> Option<Sensitivity> {
    let is_file = matches!(subject, Subject::File);
    let is_key = |keys: &[&str]| matches!(subject, Subject::Key(key) if keys.contains(&key));
    match table.split('.').next()? {
        "clients" if matches!(subject, Subject::Table) || is_key(&["tokens"]) => Some(Sensitivity::Token),
        "clients" if is_file || is_key(&["certificates", "public_keys"]) => Some(Sensitivity::Key),
        "admin" if is_key(&["tokens"]) => Some(Sensitivity::Token),
        "admin" if table.starts_with("admin.users") || is_key(&["users"]) => Some(Sensitivity::Key),
        "signers" | "credentials" => Some(Sensitivity::Key),
        "server" | "admin" if is_file || table.ends_with(".tls") || table.ends_with(".ca") => Some(Sensitivity::Key),
        "trust" if is_file || table.ends_with(".identity") || is_key(&["identity"]) => Some(Sensitivity::Key),
        "redact" if is_file || is_key(&["hmac_key"]) => Some(Sensitivity::Key),
        "log" | "traces" => Some(Sensitivity::Log),
        "audit" => Some(Sensitivity::Audit),
        "captures" => Some(Sensitivity::Capture),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_of_keys_tokens_and_logs_are_sensitive() {
        for (table, subject, expected) in [
            ("clients.billing", Subject::Key("tokens"), Some(Sensitivity::Token)),
            ("clients.billing", Subject::Table, Some(Sensitivity::Token)),
            ("clients.billing", Subject::Key("public_keys"), Some(Sensitivity::Key)),
            ("clients.billing", Subject::Key("networks"), None),
            ("admin.users.alice", Subject::Key("tokens"), Some(Sensitivity::Token)),
            ("admin.users.alice", Subject::Key("role"), Some(Sensitivity::Key)),
            ("admin.users.alice", Subject::Table, Some(Sensitivity::Key)),
            ("admin", Subject::Key("hosts"), None),
            ("signers.platform", Subject::File, Some(Sensitivity::Key)),
            ("credentials.login", Subject::Key("client_secret"), Some(Sensitivity::Key)),
            ("server.tls", Subject::Table, Some(Sensitivity::Key)),
            ("server.tls", Subject::Key("key"), Some(Sensitivity::Key)),
            ("server", Subject::File, Some(Sensitivity::Key)),
            ("server", Subject::Key("workers"), None),
            ("redact", Subject::Key("hmac_key"), Some(Sensitivity::Key)),
            ("redact", Subject::Key("path"), None),
            ("log", Subject::Key("level"), Some(Sensitivity::Log)),
            ("audit", Subject::Key("syslog"), Some(Sensitivity::Audit)),
            ("captures.support", Subject::Table, Some(Sensitivity::Capture)),
            ("captures.support", Subject::File, Some(Sensitivity::Capture)),
            ("traces", Subject::Key("endpoint"), Some(Sensitivity::Log)),
            ("routes.acme", Subject::Key("egress"), None),
            ("", Subject::Key("include"), None),
        ] {
            assert_eq!(sensitivity(table, subject), expected, "{table}");
        }
    }
}
