//! A wall clock that jumps forward and back.
//! Do deliveries, timeouts and the time of signatures survive the jump?

#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fs;
use std::path::Path;

use crate::bystander::{Fault, for_a_period};
use crate::support::Outgate;
use crate::support::pki::Pki;
use crate::support::receiver::{Receiver, ok};
use crate::support::scene::{config, folder};

/// Moves the wall clock by the seconds in a file. The monotonic clock goes on.
const SHIM: &str = r#"
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = syscall(SYS_clock_gettime, clock, time);
    const char *path = getenv("OUTGATE_TEST_JUMP");
    if (result || !path || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return result;
    char text[32] = {0};
    int file = syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    if (read(file, text, sizeof text - 1) > 0) time->tv_sec += atol(text);
    syscall(SYS_close, file);
    return 0;
}
"#;

#[test]
fn clock_that_jumps_both_ways_harms_no_delivery() {
    let pki = Pki::new();
    let (good, plain) = (Receiver::tls(pki.leaf(&["hook.example"]), ok()), Receiver::plain(ok()));
    let folder = folder(&pki);
    let (shim, jump) = (folder.build_shim(SHIM), folder.path("jump"));
    folder.write_config("config.toml", &config(&good, &plain, ""));
    let environment: [(&str, &Path); 2] = [("LD_PRELOAD", &shim), ("OUTGATE_TEST_JUMP", &jump)];
    let outgate = Outgate::run_in_with(folder, &environment);
    let fault = Fault { name: "clock jumps", harmed: "no client", reported: "signatures carry the time of the host" };
    let signed = format!("https://hook.example:{}/in", good.port());
    let (mut times, url) = (Vec::new(), format!("http://plain.example:{}/in", plain.port()));
    fault.run_by_law(&outgate, &url, &[], |harm| {
        // Half an hour forward and back: the certificates of the targets stay valid.
        for seconds in ["1800", "-1800", "0"] {
            let next = jump.with_extension("next");
            fs::write(&next, seconds).unwrap();
            fs::rename(next, &jump).unwrap();
            let before = good.requests().len();
            for_a_period(|| assert_eq!(harm.send(outgate.proxy, &signed).status, 200));
            let received = good.requests();
            times.push(received[before].field("webhook-timestamp").parse::<i64>().unwrap());
        }
    });
    // The signature has the time of the host: a jump of half an hour is seen within ten minutes.
    assert!(times[0] - times[1] >= 3000 && times[2] - times[1] >= 1200, "{times:?}");
}
