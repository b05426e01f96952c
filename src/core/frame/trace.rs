//! The frame that says which trace the counted frame after it belongs to.

use super::{FrameError, Head, LENGTH_BYTES};
use crate::core::trace::TraceContext;

/// The bytes of a [`Head::Trace`] with its length.
pub const TRACE_BYTES: usize = LENGTH_BYTES + 26;
/// A whole [`Head::Trace`], with its length.
pub type TraceFrame = [u8; TRACE_BYTES];
/// The first byte of a [`Head::Trace`]: its index.
pub(crate) const TRACE: u8 = 15;
/// The oldest protocol version that has it.
pub const TRACE_SINCE: u16 = 2;

/// The frame of a context.
pub fn trace_frame(context: &TraceContext) -> TraceFrame {
    let mut frame = [0; TRACE_BYTES];
    frame[..LENGTH_BYTES].copy_from_slice(&((TRACE_BYTES - LENGTH_BYTES) as u32).to_le_bytes());
    frame[4] = TRACE;
    frame[5..21].copy_from_slice(&context.trace_id());
    frame[21..29].copy_from_slice(&context.span_id());
    frame[29] = context.flags();
    frame
}

/// The context that stands ahead of the next counted frame of a stream. [`read`](Self::read) every frame, or
/// [`take`](Self::take) at one of which it is known that it is counted.
#[derive(Debug, Default)]
pub struct Ahead {
    context: Option<TraceContext>,
}

impl Ahead {
    /// A frame came. Gives the context of a counted one, if it has any.
    ///
    /// # Errors
    /// [`FrameError::Trace`], when a context is not followed by a counted frame.
    pub fn read(&mut self, head: &Head<'_>) -> Result<Option<TraceContext>, FrameError> {
        match (head, self.context) {
            (Head::Trace(context), None) => {
                self.context = Some(*context);
                Ok(None)
            }
            (head, _) if head.is_counted() => Ok(self.take()),
            (_, None) => Ok(None),
            (_, Some(_)) => Err(FrameError::Trace),
        }
    }

    /// A counted frame came: its context.
    #[inline]
    pub fn take(&mut self) -> Option<TraceContext> {
        self.context.take()
    }

    /// Whether a context waits for its frame.
    pub fn is_open(&self) -> bool {
        self.context.is_some()
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::super::{FrameLimits, decode_head, encode_head};
    use super::*;

    const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 1 << 20, max_room_bytes: 512 };

    fn context() -> TraceContext {
        TraceContext::new([0xab; 16], [0xcd; 8], 1).unwrap()
    }

    #[test]
    fn the_frame_is_that_of_bincode() {
        let mut wire = BytesMut::new();
        encode_head(&Head::Trace(context()), 0, &mut wire).unwrap();
        assert_eq!(&wire[..], &trace_frame(&context())[..]);
        assert_eq!(&wire[..8], b"\x1a\0\0\0\x0f\xab\xab\xab");
        let (read, used) = decode_head(&wire[LENGTH_BYTES..], &LIMITS).unwrap();
        assert_eq!((read, used), (Head::Trace(context()), 26));
    }

    #[test]
    fn a_context_without_ids_is_none() {
        for at in [5..21, 21..29] {
            let mut frame = trace_frame(&context());
            frame[at].fill(0);
            let read = decode_head(&frame[LENGTH_BYTES..], &LIMITS);
            assert!(matches!(read, Err(FrameError::Payload(_))), "{read:?}");
        }
        let cut = &trace_frame(&context())[LENGTH_BYTES..TRACE_BYTES - 1];
        assert!(matches!(decode_head(cut, &LIMITS), Err(FrameError::Head(_))));
        let long = [&trace_frame(&context())[LENGTH_BYTES..], b"x"].concat();
        assert!(matches!(decode_head(&long, &LIMITS), Err(FrameError::Payload(_))));
    }

    #[test]
    fn a_context_is_for_the_counted_frame_behind_it() {
        let (mut ahead, trace) = (Ahead::default(), Head::Trace(context()));
        assert_eq!(ahead.read(&Head::Again), Ok(None));
        assert_eq!((ahead.read(&trace), ahead.is_open()), (Ok(None), true));
        assert_eq!((ahead.read(&Head::Again), ahead.is_open()), (Ok(Some(context())), false));
        assert_eq!(ahead.read(&Head::Cancel { id: 1 }), Ok(None));
        for other in [Head::InterestWanted, Head::Start { first: 9 }, trace.clone()] {
            let mut ahead = Ahead::default();
            assert_eq!(ahead.read(&trace), Ok(None));
            assert_eq!(ahead.read(&other), Err(FrameError::Trace), "{other:?}");
        }
    }
}
