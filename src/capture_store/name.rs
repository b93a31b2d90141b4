//! The names of objects in a store: `TENANT/DATE/TIME-REQUEST_ID.age`.
//! Of which tenant, time and request is a sealed capture?

use std::io;

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use object_store::path::Path;

use crate::names::TenantName;

/// The format of date and time in a name, in UTC.
const TIME_FORMAT: &str = "%Y-%m-%d/%H%M%S";
const EXTENSION: &str = ".age";

/// The name of a sealed capture. Names sort by tenant and then by time.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectName {
    pub tenant: TenantName,
    /// Whole seconds.
    pub at: Timestamp,
    pub request_id: String,
}

impl ObjectName {
    pub(super) fn location(&self) -> io::Result<Path> {
        Path::parse(self.path()).map_err(io::Error::other)
    }

    /// Returns the path below the store.
    pub fn path(&self) -> String {
        let at = self.at.to_zoned(TimeZone::UTC).strftime(TIME_FORMAT);
        format!("{}/{at}-{}{EXTENSION}", self.tenant.file_name(), self.request_id)
    }

    /// Parses a path below the store. `None`: it is not a path that [`ObjectName::path`] returns.
    pub fn parse(path: &str) -> Option<Self> {
        let (tenant, rest) = path.split_once('/')?;
        let (time, request_id) = rest.strip_suffix(EXTENSION)?.rsplit_once('-')?;
        let at = DateTime::strptime(TIME_FORMAT, time).ok()?.to_zoned(TimeZone::UTC).ok()?.timestamp();
        let name = Self { tenant: TenantName::from_file_name(tenant)?, at, request_id: request_id.to_owned() };
        let is_id = !request_id.is_empty() && request_id.bytes().all(|byte| byte.is_ascii_alphanumeric());
        (is_id && name.path() == path).then_some(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn object_names_contain_tenant_date_and_request_id_and_lead_nowhere_else() {
        let at: Timestamp = "2026-11-26T09:05:07Z".parse().expect("a time");
        for (tenant, path) in [
            ("acme", "acme/2026-11-26/090507-0a1b.age"),
            ("a.b-c_D", "a.b-c_D/2026-11-26/090507-0a1b.age"),
            ("..", "%2E./2026-11-26/090507-0a1b.age"),
            ("../../etc", "%2E.%2F..%2Fetc/2026-11-26/090507-0a1b.age"),
            ("a/b%", "a%2Fb%25/2026-11-26/090507-0a1b.age"),
        ] {
            let name = ObjectName { tenant: TenantName::new(tenant), at, request_id: "0a1b".to_owned() };
            assert_eq!(name.path(), path);
            assert_eq!(ObjectName::parse(path), Some(name));
        }
        for path in [
            "",
            "acme",
            "acme/2026-11-26/090507-0a1b",
            "acme/2026-11-26/090507-.age",
            "acme/2026-11-26/090507-../x.age",
            "acme/2026-13-26/090507-0a1b.age",
            "../2026-11-26/090507-0a1b.age",
            ".new/2026-11-26/090507-0a1b.age",
            "a%2fb/2026-11-26/090507-0a1b.age",
            "x/acme/2026-11-26/090507-0a1b.age",
        ] {
            assert_eq!(ObjectName::parse(path), None, "{path}");
        }
    }
}
