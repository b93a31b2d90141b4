//! The memory that this process may use: that of the host, or the limit of a control group (cgroups(7)).
//! Above how many bytes does the kernel kill the process?

use std::fs;
use std::path::{Path, PathBuf};

/// The controllers of version 1 in `/proc/self/cgroup` that include this one have a limit of memory.
const CONTROLLER: &str = "memory";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Returns the least limit of the process's control groups and of the host, in bytes.
pub fn memory_max() -> u64 {
    let host = rustix::system::sysinfo();
    let host = host.totalram.saturating_mul(u64::from(host.mem_unit));
    let groups = read(Path::new("/proc/self/cgroup")).unwrap_or_default();
    limit_files(&groups).iter().filter_map(|file| read(file)?.trim().parse().ok()).fold(host, u64::min)
}

#[expect(clippy::disallowed_methods, reason = "the kernel's limits of memory")]
fn read(path: &Path) -> Option<String> {
    fs::read_to_string(path).ok()
}

/// Returns the files that may have a limit: of each control group of the process and of those above it. In version 2, the
/// text `max` stands for no limit.
fn limit_files(groups: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let (root, file) = match controllers {
            "" => (PathBuf::from(CGROUPS), "memory.max"),
            _ if controllers.split(',').any(|name| name == CONTROLLER) => {
                (Path::new(CGROUPS).join(CONTROLLER), "memory.limit_in_bytes")
            }
            _ => continue,
        };
        files.extend(Path::new(group.trim_start_matches('/')).ancestors().map(|group| root.join(group).join(file)));
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_limit_is_read_of_each_control_group_of_both_versions() {
        let files = |text| limit_files(text).iter().map(|file| file.display().to_string()).collect::<Vec<_>>();
        assert_eq!(
            files("0::/system.slice/outgate.service\n"),
            [
                "/sys/fs/cgroup/system.slice/outgate.service/memory.max",
                "/sys/fs/cgroup/system.slice/memory.max",
                "/sys/fs/cgroup/memory.max"
            ]
        );
        assert_eq!(
            files("4:memory:/a\n3:cpu,memory:/\n1:cpu:/b\n"),
            [
                "/sys/fs/cgroup/memory/a/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes",
                "/sys/fs/cgroup/memory/memory.limit_in_bytes"
            ]
        );
        assert!(files("x\n").is_empty());
    }

    #[test]
    fn memory_limit_is_at_most_that_of_the_host() {
        assert!((1 << 20..1 << 50).contains(&memory_max()), "{}", memory_max());
    }
}
