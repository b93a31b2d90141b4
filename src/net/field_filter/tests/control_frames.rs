//! Floods of frames that belong to no message.
//! When does the filter end the connection?

use super::*;

#[test]
fn field_filter_ends_a_connection_with_too_many_pings_or_settings() {
    for kind in [PING, SETTINGS] {
        for messages in [MessageKind::Requests, MessageKind::Responses] {
            let payload = if kind == PING { &[0; 8][..] } else { &[] };
            let one = frame_on(0, kind, 0, payload);
            let (mut filter, mut output) = (FieldFilter::new(messages, LIST_MAX), BytesMut::new());
            if messages == MessageKind::Requests {
                filter.process(PREFACE, &mut output);
            }
            filter.process(&one.repeat(CONTROL_FRAMES_MAX as usize), &mut output);
            assert!(!filter.has_ended(), "{kind}");
            // The count has leaked a little by now.
            filter.process(&one.repeat(CONTROL_FRAMES_MAX as usize), &mut output);
            assert!(filter.has_ended(), "{kind}");
        }
    }
}
