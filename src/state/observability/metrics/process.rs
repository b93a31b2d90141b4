//! The metrics of this process and of its tokio runtime, read from the kernel and from tokio at each scrape.
//! How much processor time, memory and descriptors does the process use, and how busy are its workers?
//!
//! The names `process_*` are those of the client libraries of Prometheus, so that common dashboards and alerts fit.

use std::fmt;
use std::fs;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use rustix::process::{Resource, getrlimit};
use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::Handle;

use crate::panics;

/// `process_*`.
#[derive(Debug)]
pub(super) struct ProcessCollector {
    /// Seconds since the Unix epoch.
    started_at: f64,
}

/// `outgate_runtime_*`. `None`: the metrics were made outside of a runtime, as in a test.
#[derive(Debug)]
pub(super) struct RuntimeCollector(pub(super) Option<Handle>);

/// The lines of `/proc/self/status` that are metrics (proc_pid_status(5)).
#[derive(Debug, PartialEq, Eq)]
struct ProcessStatus {
    /// Bytes.
    virtual_memory: u64,
    resident_memory: u64,
    threads: u64,
}

impl Default for ProcessCollector {
    fn default() -> Self {
        let started_at = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { started_at: started_at.as_secs_f64() }
    }
}

impl Collector for ProcessCollector {
    #[expect(clippy::disallowed_methods, reason = "proc(5) lists the descriptors and the memory of this process")]
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let time = clock_gettime(ClockId::ProcessCPUTime);
        let time = Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or_default());
        counter(
            &mut encoder,
            ("process_cpu", Some(Unit::Seconds)),
            "Processor time in user and system mode",
            time.as_secs_f64(),
        )?;
        let (start, started_at) = (("process_start_time", Some(Unit::Seconds)), self.started_at);
        gauge(&mut encoder, start, "When the process started, as Unix time", started_at)?;
        if let Some(status) = fs::read_to_string("/proc/self/status").ok().and_then(|text| ProcessStatus::parse(&text))
        {
            let (virtual_memory, resident) = (status.virtual_memory as f64, status.resident_memory as f64);
            let bytes = |name| (name, Some(Unit::Bytes));
            gauge(&mut encoder, bytes("process_virtual_memory"), "Address space", virtual_memory)?;
            gauge(&mut encoder, bytes("process_resident_memory"), "Memory in RAM", resident)?;
            gauge(&mut encoder, ("process_threads", None), "Threads", status.threads as f64)?;
        }
        if let Ok(descriptors) = fs::read_dir("/proc/self/fd") {
            // One of them reads the folder.
            let count = descriptors.count().saturating_sub(1);
            gauge(&mut encoder, ("process_open_fds", None), "Open file descriptors", count as f64)?;
        }
        let Some(max) = getrlimit(Resource::Nofile).current else { return Ok(()) };
        gauge(&mut encoder, ("process_max_fds", None), "The limit of open file descriptors (RLIMIT_NOFILE)", max as f64)
    }
}

impl ProcessStatus {
    fn parse(text: &str) -> Option<Self> {
        let number = |key: &str| {
            let rest = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
            rest.split_whitespace().next()?.parse::<u64>().ok()
        };
        let (virtual_memory, resident_memory) = (number("VmSize")? * 1024, number("VmRSS")? * 1024);
        Some(Self { virtual_memory, resident_memory, threads: number("Threads")? })
    }
}

impl Collector for RuntimeCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Some(handle) = &self.0 else { return Ok(()) };
        let metrics = handle.metrics();
        let workers = metrics.num_workers();
        let busy = (0..workers).map(|worker| metrics.worker_total_busy_duration(worker)).sum::<Duration>();
        gauge(&mut encoder, ("runtime_workers", None), "Threads that carry the traffic", workers as f64)?;
        counter(
            &mut encoder,
            ("runtime_busy", Some(Unit::Seconds)),
            "Time in which the workers were not idle, all together",
            busy.as_secs_f64(),
        )?;
        let tasks = metrics.num_alive_tasks() as f64;
        encode(
            &mut encoder,
            ("panics", None),
            "Panics that ended one delivery or connection and not the process",
            &ConstCounter::new(panics::count()),
        )?;
        gauge(&mut encoder, ("runtime_tasks", None), "Tasks that have not ended", tasks)?;
        let queued = metrics.global_queue_depth() as f64;
        gauge(&mut encoder, ("runtime_queue_depth", None), "Tasks in the queue that all workers share", queued)
    }
}

type NameAndUnit<'a> = (&'a str, Option<Unit>);

fn counter(encoder: &mut DescriptorEncoder<'_>, name: NameAndUnit<'_>, help: &str, value: f64) -> fmt::Result {
    encode(encoder, name, help, &ConstCounter::new(value))
}

fn gauge(encoder: &mut DescriptorEncoder<'_>, name: NameAndUnit<'_>, help: &str, value: f64) -> fmt::Result {
    encode(encoder, name, help, &ConstGauge::new(value))
}

fn encode(
    encoder: &mut DescriptorEncoder<'_>,
    (name, unit): NameAndUnit<'_>,
    help: &str,
    metric: &impl EncodeMetric,
) -> fmt::Result {
    // The registry ends the help of its own metrics with a full stop.
    metric.encode(encoder.encode_descriptor(name, &format!("{help}."), unit.as_ref(), metric.metric_type())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_status_has_memory_in_bytes_and_threads() {
        let text = "Name:\toutgate\nVmSize:\t  103424 kB\nVmRSS:\t   20480 kB\nThreads:\t7\n";
        let status = ProcessStatus { virtual_memory: 103_424 << 10, resident_memory: 20_480 << 10, threads: 7 };
        assert_eq!(ProcessStatus::parse(text), Some(status));
        assert_eq!(ProcessStatus::parse("Name:\tkthreadd\nThreads:\t1\n"), None);
    }
}
