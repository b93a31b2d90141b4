//! What the kernel says of a process.
//! How much CPU time and memory does the proxy use?

use std::fs;

use crate::Error;

/// Returns the CPU time of all threads of a process, user and system, in seconds. The resolution is that of `CLK_TCK`.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64, Error> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in parentheses, may have spaces.
    let (_, fields) = text.rsplit_once(')').ok_or("/proc/PID/stat")?;
    let mut times = fields.split_whitespace().skip(11).map(str::parse::<u64>);
    let (user, system) = (times.next().ok_or("utime")??, times.next().ok_or("stime")??);
    Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Returns the proportional set size of a process, in bytes.
pub(crate) fn memory(pid: u32) -> Result<f64, Error> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:")).ok_or("no Pss")?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0)
}
