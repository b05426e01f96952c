//! The place of an emit in a trace, as the W3C Trace Context (level 1) has it: <https://www.w3.org/TR/trace-context-1/>.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The flag of what is sampled.
const SAMPLED: u8 = 0x01;
/// The length of a `traceparent` of version 00.
const LEN: usize = 55;

/// Which trace something belongs to, and under which span. Reads and writes `traceparent`:
///
/// ```
/// use roomcast::trace::TraceContext;
///
/// let context: TraceContext = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse()?;
/// assert!(context.is_sampled());
/// assert_eq!(context.to_string(), "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
/// # Ok::<(), roomcast::trace::TraceError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TraceContext {
    trace_id: [u8; 16],
    span_id: [u8; 8],
    flags: u8,
}

/// Why something is no trace context. Nothing is traced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TraceError {
    /// The text is not `version-trace-span-flags` in lower-case hexadecimal digits. Nothing is traced.
    #[error("read a traceparent: give 00-, 32 digits, -, 16 digits, -, 2 digits, in lower-case hexadecimal")]
    Form,
    /// The id of the trace or of the span is all zero, which means none. Nothing is traced.
    #[error("read a traceparent: the id of the trace or of the span is all zero")]
    Zero,
}

impl TraceContext {
    /// The trace, the span in it, and the flags (`0x01`: sampled).
    ///
    /// # Errors
    /// [`TraceError::Zero`].
    pub fn new(trace_id: [u8; 16], span_id: [u8; 8], flags: u8) -> Result<Self, TraceError> {
        let context = Self { trace_id, span_id, flags };
        if context.is_valid() { Ok(context) } else { Err(TraceError::Zero) }
    }

    /// The id of the trace.
    pub fn trace_id(&self) -> [u8; 16] {
        self.trace_id
    }

    /// The id of the span.
    pub fn span_id(&self) -> [u8; 8] {
        self.span_id
    }

    /// The flags.
    pub fn flags(&self) -> u8 {
        self.flags
    }

    /// Whether it is recorded. What is not is never sent to another node.
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
    }

    /// Whether both ids name something: what was decoded may say nothing.
    pub(crate) fn is_valid(&self) -> bool {
        self.trace_id != [0; 16] && self.span_id != [0; 8]
    }
}

impl fmt::Display for TraceContext {
    /// As `traceparent` of version 00, with the one flag that it has.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (trace, span) = (u128::from_be_bytes(self.trace_id), u64::from_be_bytes(self.span_id));
        write!(f, "00-{trace:032x}-{span:016x}-{:02x}", self.flags & SAMPLED)
    }
}

impl FromStr for TraceContext {
    type Err = TraceError;

    /// Reads `traceparent` of version 00, and of later versions as far as they are the same.
    fn from_str(text: &str) -> Result<Self, TraceError> {
        let bytes = text.as_bytes();
        let later = bytes.len() > LEN && bytes[LEN] == b'-' && !text.starts_with("00");
        let dashes = [2, 35, 52].iter().all(|at| bytes.get(*at) == Some(&b'-'));
        if !dashes || text.starts_with("ff") || !(bytes.len() == LEN || later) {
            return Err(TraceError::Form);
        }
        let [_version] = hex(&bytes[..2])?;
        let [flags] = hex(&bytes[53..LEN])?;
        Self::new(hex(&bytes[3..35])?, hex(&bytes[36..52])?, flags)
    }
}

/// Twice as many lower-case digits as bytes.
fn hex<const N: usize>(digits: &[u8]) -> Result<[u8; N], TraceError> {
    let value = |digit: u8| match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(TraceError::Form),
    };
    let (pairs, _) = digits.as_chunks::<2>();
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = value(*high)? << 4 | value(*low)?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn a_traceparent_is_read_and_written() {
        let context: TraceContext = TEXT.parse().unwrap();
        assert_eq!((context.to_string(), context.is_sampled(), context.flags()), (TEXT.into(), true, 1));
        assert_eq!((context.trace_id()[0], context.span_id()[7]), (0x0a, 0x31));
        let not = TEXT.replace("-01", "-00").parse::<TraceContext>().unwrap();
        assert!(!not.is_sampled());
        // Flags and parts of a later version are not passed on as text.
        for later in
            ["cc-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-03", &format!("cc{}-more", &TEXT[2..])]
        {
            assert_eq!(later.parse::<TraceContext>().unwrap().to_string(), TEXT);
        }
    }

    #[test]
    fn what_is_no_traceparent_is_an_error() {
        let (short, long, joined) = (&TEXT[..54], format!("{TEXT}-x"), format!("cc{}x", &TEXT[2..]));
        let upper = TEXT.to_uppercase();
        for text in
            ["", "00", short, &long, &joined, &upper, &TEXT.replace("00-", "ff-"), &TEXT.replace('-', "_")]
        {
            assert_eq!(text.parse::<TraceContext>(), Err(TraceError::Form), "{text}");
        }
        let no_span = format!("{}-{}-01", &TEXT[..35], "0".repeat(16));
        let no_trace = format!("00-{}-{}", "0".repeat(32), &TEXT[36..]);
        for text in [no_span, no_trace] {
            assert_eq!(text.parse::<TraceContext>(), Err(TraceError::Zero), "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,60}|[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}(-.{0,9})?") {
            if let Ok(context) = text.parse::<TraceContext>() {
                let again: TraceContext = context.to_string().parse().unwrap();
                prop_assert_eq!((again.trace_id(), again.span_id()), (context.trace_id(), context.span_id()));
            }
        }
    }
}
