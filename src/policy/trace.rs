//! W3C Trace Context (<https://www.w3.org/TR/trace-context-2/>): the trace that a delivery belongs to.
//! Which trace does a delivery continue or begin, and what does the target learn of it?

use std::collections::BTreeMap;
use std::sync::Arc;

use data_encoding::HEXLOWER;

use super::trust::Trust;
use crate::config::{Config, Problem, SampleRate, Traces};
use crate::names::TrustName;

pub type TraceId = [u8; 16];
pub type SpanId = [u8; 8];

/// The length of a `traceparent` of version 00. Later versions may only append fields (§3.2.4).
const LENGTH: usize = 55;
/// The flags of `traceparent` (§3.2.2.5).
const SAMPLED: u8 = 1;
const RANDOM_TRACE_ID: u8 = 2;

/// The span that a `traceparent` names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ParentSpan {
    trace_id: TraceId,
    span_id: SpanId,
    flags: u8,
}

impl ParentSpan {
    /// Parses a `traceparent`. An invalid one is `None`: the delivery then begins a trace (§4.3).
    pub fn parse(text: &str) -> Option<Self> {
        let (known, more) = text.split_at_checked(LENGTH)?;
        let mut fields = known.split('-').map(|field| HEXLOWER.decode(field.as_bytes()).ok());
        let (version, trace_id, span_id, flags) = (fields.next()??, fields.next()??, fields.next()??, fields.next()??);
        let is_complete = match version[..] {
            [0] => more.is_empty(),
            [version] => version != 0xff && (more.is_empty() || more.starts_with('-')),
            _ => false,
        };
        let (trace_id, span_id) = (trace_id.try_into().ok()?, span_id.try_into().ok()?);
        let is_valid = trace_id != TraceId::default() && span_id != SpanId::default() && fields.next().is_none();
        (is_complete && is_valid).then_some(Self { trace_id, span_id, flags: *flags.first()? })
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }
}

/// The place of one delivery in a trace.
#[derive(Clone, Copy, Debug)]
pub struct TraceContext {
    pub trace_id: TraceId,
    /// The span of the caller; `None`: the delivery begins the trace.
    pub parent: Option<SpanId>,
    first_span: u64,
    pub flags: u8,
}

impl TraceContext {
    /// Continues the trace of the caller, or begins one. The ids come from the random numbers.
    pub fn new(parent: Option<ParentSpan>, random: [u64; 3], is_sampled: bool) -> Self {
        let [high, low, span] = random;
        let begun = u128::from(high) << 64 | u128::from(low.max(1));
        // The flag of the caller's trace id stays: outgate does not know whether that id is random.
        let (trace_id, random) = parent
            .map_or((begun.to_be_bytes(), RANDOM_TRACE_ID), |parent| (parent.trace_id, parent.flags & RANDOM_TRACE_ID));
        let flags = random | if is_sampled { SAMPLED } else { 0 };
        // Neither this id nor a following one is zero.
        Self { trace_id, parent: parent.map(|parent| parent.span_id), first_span: (span >> 1) + 1, flags }
    }

    /// Returns whether the share of this rate has the trace that these random numbers begin.
    pub fn is_in_share(random: [u64; 3], SampleRate(rate): SampleRate) -> bool {
        let position = (u128::from(random[1]) * u128::from(SampleRate::ALL.0)) >> 64;
        position < u128::from(rate)
    }

    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Returns the id of one of the delivery's spans. 0 is the delivery, and 1 the request that the target gets.
    pub fn span_id(&self, number: u8) -> SpanId {
        (self.first_span + u64::from(number)).to_be_bytes()
    }

    /// Returns the `traceparent` of the request that the target gets.
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(LENGTH);
        text.push_str("00");
        for field in [&self.trace_id[..], &self.span_id(1), &[self.flags]] {
            text.push('-');
            HEXLOWER.encode_append(field, &mut text);
        }
        text
    }
}

/// Checks `[traces]`. `None`: outgate records no traces.
pub(super) fn compile(
    config: &Config,
    trusts: &BTreeMap<TrustName, Arc<Trust>>,
    problems: &mut Vec<Problem>,
) -> Option<Arc<Traces>> {
    let written = config.traces.as_ref()?;
    if let Some(trust) = written.trust.as_ref().filter(|trust| !trusts.contains_key(trust.as_str())) {
        let problem = Problem::at(trust.span, format!("there is no trust {:?}", trust.value));
        problems.push(problem.help(format!("add [trust.{}], or write the name of one that exists", trust.value)));
    }
    Some(Arc::new(written.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALID: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn trace_is_sampled_as_its_flag_says() {
        let parent = ParentSpan::parse(VALID).unwrap();
        for (parent, is_sampled) in [(None, true), (None, false), (Some(parent), true), (Some(parent), false)] {
            let trace = TraceContext::new(parent, [1, 2, 3], is_sampled);
            assert_eq!(trace.is_sampled(), is_sampled);
            assert_eq!(ParentSpan::parse(&trace.traceparent()).unwrap().is_sampled(), is_sampled);
        }
    }

    /// The cases of W3C's test suite (github.com/w3c/trace-context, test/test.py).
    #[test]
    fn traceparent_is_valid_or_begins_a_new_trace() {
        let parent = ParentSpan::parse(VALID).unwrap();
        assert!(parent.is_sampled() && parent.span_id == [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31]);
        for unsampled in ["00", "02"] {
            let text = format!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-{unsampled}");
            assert!(!ParentSpan::parse(&text).unwrap().is_sampled(), "{text}");
        }
        for valid in [
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-ff",
            "cc-12345678901234567890123456789012-1234567890123456-01",
            "cc-12345678901234567890123456789012-1234567890123456-01-what-the-future-will-be-like",
        ] {
            assert!(ParentSpan::parse(valid).is_some(), "{valid}");
        }
        for invalid in [
            "",
            "00",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01-extra",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01.",
            "cc-12345678901234567890123456789012-1234567890123456-01.what-the-future",
            "ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "00-00000000000000000000000000000000-b7ad6b7169203331-01",
            "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
            "00-0AF7651916CD43DD8448EB211C80319C-b7ad6b7169203331-01",
            "00-.234567890123456789012345678901-1234567890123456-01",
            "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-.1",
            "00-0af7651916cd43dd8448eb211c80319-b7ad6b71692033311-01",
            "0-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-001",
            " 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0",
            "00_0af7651916cd43dd8448eb211c80319c_b7ad6b7169203331_01",
        ] {
            assert_eq!(ParentSpan::parse(invalid), None, "{invalid}");
        }
    }

    #[test]
    fn trace_continues_with_a_new_span_and_the_flags_that_outgate_knows() {
        let parent = ParentSpan::parse(&VALID.replace("-01", "-ff"));
        let continued = TraceContext::new(parent, [1, 2, 3], false);
        assert_eq!(continued.traceparent(), "00-0af7651916cd43dd8448eb211c80319c-0000000000000003-02");
        assert_eq!(continued.parent, parent.map(|parent| parent.span_id));
        let begun = TraceContext::new(None, [1, 2, u64::MAX], true);
        assert_eq!(begun.traceparent(), "00-00000000000000010000000000000002-8000000000000001-03");
        assert!(begun.parent.is_none() && ParentSpan::parse(&begun.traceparent()).is_some());
        let zero = TraceContext::new(None, [0; 3], true);
        assert!(ParentSpan::parse(&zero.traceparent()).is_some(), "no id is zero");
    }

    #[test]
    fn trace_is_sampled_by_its_random_numbers() {
        let is_in = |low: u64, rate| TraceContext::is_in_share([0, low, 0], SampleRate(rate));
        assert!(!is_in(0, 0) && is_in(0, 1) && is_in(u64::MAX, 10_000) && !is_in(u64::MAX, 9_999));
        assert!(is_in(u64::MAX / 4, 2_500) && !is_in(u64::MAX / 4, 2_499));
    }
}
