//! Floods of frames that belong to no message.
//! When does the filter end the connection?

use super::super::frame_limits::{BYTES_PER_FRAME, CONTROL_FRAMES_MAX, UNEARNED_MAX};
use super::*;
use crate::net::frame::{PING, SETTINGS, WINDOW_UPDATE};

const ORIGIN: u8 = 12; // RFC 8336; no frame that h2 knows

#[test]
fn field_filter_ends_a_connection_with_too_many_frames_without_a_message() {
    let burst =
        |kind| if matches!(kind, PING | SETTINGS) { CONTROL_FRAMES_MAX } else { UNEARNED_MAX / BYTES_PER_FRAME };
    for kind in [PING, SETTINGS, WINDOW_UPDATE, PRIORITY, RST_STREAM, ORIGIN] {
        for messages in [MessageKind::Requests, MessageKind::Responses] {
            let one = frame_on(0, kind, 0, &[0; 8]);
            let (mut filter, mut output) = (filter_of(messages), BytesMut::new());
            filter.process(&one.repeat(burst(kind) as usize), &mut output);
            assert!(!filter.has_ended(), "{kind}");
            // The count has leaked a little by now.
            filter.process(&one.repeat(burst(kind) as usize), &mut output);
            assert!(filter.has_ended(), "{kind}");
        }
    }
}

#[test]
fn field_filter_permits_window_updates_for_bytes_that_were_written() {
    let (mut filter, mut output) = (filter_of(MessageKind::Responses), BytesMut::new());
    let burst = (UNEARNED_MAX / BYTES_PER_FRAME) as usize;
    let updates = frame_on(0, WINDOW_UPDATE, 0, &[0, 0, 4, 0]).repeat(burst);
    for _ in 0..20 {
        filter.process(&updates, &mut output);
        filter.record_written(burst * BYTES_PER_FRAME as usize);
    }
    assert!(!filter.has_ended());
}

/// Returns a filter after the preface.
fn filter_of(messages: MessageKind) -> FieldFilter {
    let mut filter = FieldFilter::new(messages, LIST_MAX);
    if messages == MessageKind::Requests {
        filter.process(PREFACE, &mut BytesMut::new());
    }
    filter
}
