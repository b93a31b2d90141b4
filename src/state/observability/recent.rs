//! The most recent deliveries in memory, as lines of the delivery log.
//! What became of the last webhooks, if no file has their records?

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::Mutex;

/// The bounds of the ring. A line has about 900 bytes.
const LINES_MAX: usize = 1000;
const BYTES_MAX: usize = 4 << 20;
/// The memory of an old line that the next one uses again. The bound in bytes would not count more.
const CAPACITY_KEPT: usize = 4 << 10;

/// A ring of lines. Each line has passed redaction, because it is the line that the log gets.
#[derive(Default)]
pub struct RecentDeliveries(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    lines: VecDeque<Arc<Vec<u8>>>,
    bytes: usize,
    /// The number of lines since the start.
    count: u64,
}

/// The lines of the ring.
pub struct RecentLines {
    /// The number of lines since the start. A later question states it, and gets the lines after these.
    pub count: u64,
    /// The newest line is the last.
    pub lines: Vec<Arc<Vec<u8>>>,
}

impl RecentDeliveries {
    /// Adds a line, whose line feed the ring leaves out. The oldest line makes room.
    pub fn push(&self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.len() > BYTES_MAX {
            return;
        }
        let mut ring = self.0.lock();
        let mut buffer = None;
        while ring.lines.len() >= LINES_MAX || ring.bytes + line.len() > BYTES_MAX {
            let Some(oldest) = ring.lines.pop_front() else { break };
            ring.bytes -= oldest.len();
            buffer = Some(oldest); // its memory is used again, unless a request reads it
        }
        let mut buffer = buffer.unwrap_or_default();
        let text = Arc::make_mut(&mut buffer);
        text.clear();
        text.shrink_to(CAPACITY_KEPT);
        text.extend_from_slice(line);
        ring.bytes += line.len();
        ring.count += 1;
        ring.lines.push_back(buffer);
    }

    /// Returns the lines after the first `seen` lines since the start, as far as the ring still has them.
    pub fn after(&self, seen: u64) -> RecentLines {
        let ring = self.0.lock();
        // A number of a former process may be larger than the count.
        let new = usize::try_from(ring.count.checked_sub(seen).unwrap_or(ring.count)).unwrap_or(usize::MAX);
        let skipped = ring.lines.len().saturating_sub(new);
        RecentLines { count: ring.count, lines: ring.lines.iter().skip(skipped).cloned().collect() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(recent: &RecentDeliveries, seen: u64) -> Vec<String> {
        recent.after(seen).lines.into_iter().map(|line| String::from_utf8(line.to_vec()).unwrap()).collect()
    }

    #[test]
    fn recent_deliveries_keep_the_newest_lines() {
        let recent = RecentDeliveries::default();
        (0..LINES_MAX + 5).for_each(|number| recent.push(format!("{number}\n").as_bytes()));
        let lines = texts(&recent, 0);
        assert_eq!((lines.len(), lines[0].as_str()), (LINES_MAX, "5"));
        assert_eq!(texts(&recent, LINES_MAX as u64 + 3), ["1003", "1004"]);
        assert_eq!(texts(&recent, LINES_MAX as u64 + 5), [""; 0]);
        assert_eq!(texts(&recent, u64::MAX).len(), LINES_MAX, "the process was restarted");
    }

    #[test]
    fn recent_deliveries_have_a_bound_in_bytes() {
        let recent = RecentDeliveries::default();
        let line = "x".repeat(BYTES_MAX / 3);
        (0..5).for_each(|_| recent.push(line.as_bytes()));
        assert_eq!(texts(&recent, 0).len(), 3);
        recent.push("y".repeat(BYTES_MAX + 1).as_bytes());
        recent.push(b"short");
        let lines = texts(&recent, 0);
        assert_eq!((lines.len(), lines[2].as_str()), (3, "short"), "the oldest line made room");
    }
}
