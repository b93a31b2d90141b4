//! The most recent deliveries in memory, as lines of the delivery log.
//! What became of the last webhooks, if no file has their records?

use std::collections::VecDeque;

use crate::panics::Mutex;

/// The bounds of the ring. A line has about 900 bytes.
const LINES_MAX: usize = 1000;
const BYTES_MAX: usize = 4 << 20;

/// A ring of lines. Each line has passed redaction, because it is the line that the log gets.
#[derive(Default)]
pub struct RecentDeliveries(Mutex<Ring>);

#[derive(Default)]
struct Ring {
    /// The lines one after the other. A line in memory of its own would cost each delivery several cache misses.
    text: VecDeque<u8>,
    /// The length of each line.
    lengths: VecDeque<usize>,
    /// The number of lines since the start.
    count: u64,
}

/// The lines of the ring.
pub struct RecentLines {
    /// The number of lines since the start. A later question states it, and gets the lines after these.
    pub count: u64,
    /// The newest line is the last.
    pub lines: Vec<Vec<u8>>,
}

impl RecentDeliveries {
    /// Adds a line, whose line feed the ring leaves out. The oldest line makes room.
    pub fn push(&self, line: &[u8]) {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        if line.len() > BYTES_MAX {
            return;
        }
        let mut ring = self.0.lock();
        while ring.lengths.len() >= LINES_MAX || ring.text.len() + line.len() > BYTES_MAX {
            let Some(oldest) = ring.lengths.pop_front() else { break };
            ring.text.drain(..oldest);
        }
        ring.text.extend(line);
        ring.lengths.push_back(line.len());
        ring.count += 1;
    }

    /// Returns the lines after the first `seen` lines since the start, as far as the ring still has them.
    pub fn after(&self, seen: u64) -> RecentLines {
        let ring = self.0.lock();
        // A number of a former process may be larger than the count.
        let new = usize::try_from(ring.count.checked_sub(seen).unwrap_or(ring.count)).unwrap_or(usize::MAX);
        let skipped = ring.lengths.len().saturating_sub(new);
        let lengths: Vec<usize> = ring.lengths.range(skipped..).copied().collect();
        let start = ring.text.len() - lengths.iter().sum::<usize>();
        let (first, second) = ring.text.as_slices();
        let text = [&first[start.min(first.len())..], &second[start.saturating_sub(first.len())..]].concat();
        let count = ring.count;
        drop(ring); // a delivery waits for one copy of BYTES_MAX at most
        let mut rest = text.as_slice();
        let lines = lengths.into_iter().filter_map(|length| rest.split_off(..length)).map(<[u8]>::to_vec).collect();
        RecentLines { count, lines }
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
    fn recent_deliveries_stay_whole_while_older_lines_make_room() {
        let recent = RecentDeliveries::default();
        let line = |number: usize| format!("{number} {}", "x".repeat(number % 97));
        for pushed in 1..5 * LINES_MAX {
            recent.push(line(pushed).as_bytes());
            if pushed % 91 == 0 {
                let seen = pushed - pushed % 1009;
                let expected: Vec<_> = (seen.max(pushed.saturating_sub(LINES_MAX)) + 1..=pushed).map(line).collect();
                assert_eq!(texts(&recent, seen as u64), expected, "{pushed}");
            }
        }
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
