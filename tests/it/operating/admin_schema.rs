//! The OpenAPI document of the admin API, against a running proxy.
//! Does every response have a declared status and form, and is every wrong request refused?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use crate::support;

use super::admin_api::with_users;
use support::clients::InstalledClients;
use support::control::get;
use support::scene::scene_of;

#[test]
fn openapi_document_is_valid_and_describes_the_responses_of_the_api() {
    let Some(clients) = InstalledClients::open() else { return };
    let scene = scene_of(&with_users);
    assert_eq!(scene.outgate.post(&scene.good_url(), "", "x").status, 200);
    let document = scene.outgate.folder.write("openapi.json", get(&scene.outgate, "/v1/openapi.json").body);
    for role in ["viewer", "operator"] {
        let mut command = clients.python("admin_api");
        command.arg(&document).arg(format!("http://{}", scene.outgate.admin)).arg(role);
        let output = command.current_dir(scene.outgate.folder.path("")).output().unwrap();
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{role}: {printed}\n{}", String::from_utf8_lossy(&output.stderr));
        eprintln!("{role}: {}", printed.lines().last().unwrap_or_default());
    }
}
