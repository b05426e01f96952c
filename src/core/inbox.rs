//! What came from one run of one peer: which frames are new, which are repeated, which never came.

use crate::core::frame::Resume;
use crate::ids::Seq;

/// The counted frames from one run of one peer.
///
/// [`start`](Self::start) when a link says where it begins, [`jump`](Self::jump) when it says so again, then [`accept`](Self::accept) for every counted frame.
#[derive(Debug, Default)]
pub struct Inbox {
    /// The epoch of the sender's outbox; none before the first link.
    epoch: Option<u64>,
    received: Seq,
    /// Frames that this link repeats.
    repeated: u64,
}

/// What to do with a counted frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is the next one.
    Deliver,
    /// It was applied before.
    Duplicate,
}

/// What the start of a link means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Started {
    /// Frames that never come: the sender no longer has them.
    pub gap: u64,
    /// Frames that come again and are dropped.
    pub repeated: u64,
}

impl Inbox {
    /// Nothing received yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The last frame applied.
    pub fn received(&self) -> Seq {
        self.received
    }

    /// What to tell the peer on a new link. `own_epoch` is the epoch of our outbox for it.
    pub fn resume(&self, own_epoch: u64) -> Resume {
        Resume { epoch: own_epoch, received: self.epoch.map(|epoch| (epoch, self.received.0)) }
    }

    /// A link begins with the frame `first` of the sender's `epoch`; at most [`MAX_FIRST`](super::frame::MAX_FIRST),
    /// as checked where frames are read.
    pub fn start(&mut self, epoch: u64, first: Seq) -> Started {
        if self.epoch != Some(epoch) {
            // A new outbox: what the old one still owed is counted by the sender.
            self.epoch = Some(epoch);
            self.received = Seq(first.0.saturating_sub(1));
            self.repeated = 0;
            return Started { gap: 0, repeated: 0 };
        }
        let expected = self.received.next();
        let gap = first.0.saturating_sub(expected.0);
        self.repeated = expected.0.saturating_sub(first.0);
        self.received = Seq(self.received.0 + gap);
        Started { gap, repeated: self.repeated }
    }

    /// The same link goes on with the frame `first`; at most [`MAX_FIRST`](super::frame::MAX_FIRST). Returns how many of
    /// those before it never come, or none when that is no step forward: the peer breaks the protocol.
    pub fn jump(&mut self, first: Seq) -> Option<u64> {
        let expected = self.received.next();
        if first.0 <= expected.0 - self.repeated {
            return None;
        }
        let gap = first.0.saturating_sub(expected.0);
        self.repeated = expected.0.saturating_sub(first.0);
        self.received = Seq(self.received.0 + gap);
        Some(gap)
    }

    /// A counted frame arrived.
    pub fn accept(&mut self) -> Verdict {
        if self.repeated > 0 {
            self.repeated -= 1;
            return Verdict::Duplicate;
        }
        self.received = self.received.next();
        Verdict::Deliver
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_begins_earlier_repeats_and_later_leaves_a_gap() {
        let mut inbox = Inbox::new();
        assert_eq!(inbox.resume(5), Resume { epoch: 5, received: None });
        assert_eq!(inbox.start(1, Seq(1)), Started { gap: 0, repeated: 0 });
        assert_eq!([inbox.accept(), inbox.accept()], [Verdict::Deliver; 2]);
        assert_eq!(inbox.resume(5).received, Some((1, 2)));

        assert_eq!(inbox.start(1, Seq(2)), Started { gap: 0, repeated: 1 });
        assert_eq!([inbox.accept(), inbox.accept()], [Verdict::Duplicate, Verdict::Deliver]);
        assert_eq!(inbox.received(), Seq(3));

        assert_eq!(inbox.start(1, Seq(10)), Started { gap: 6, repeated: 0 });
        assert_eq!((inbox.accept(), inbox.received()), (Verdict::Deliver, Seq(10)));
    }

    #[test]
    fn a_link_may_go_on_later_and_never_earlier() {
        let mut inbox = Inbox::new();
        inbox.start(1, Seq(1));
        assert_eq!((inbox.jump(Seq(1)), inbox.jump(Seq(4))), (None, Some(3)));
        assert_eq!((inbox.accept(), inbox.received(), inbox.jump(Seq(4))), (Verdict::Deliver, Seq(4), None));
        // Among frames that are repeated, and beyond them.
        assert_eq!(inbox.start(1, Seq(2)), Started { gap: 0, repeated: 3 });
        assert_eq!((inbox.jump(Seq(2)), inbox.jump(Seq(4))), (None, Some(0)));
        assert_eq!([inbox.accept(), inbox.accept()], [Verdict::Duplicate, Verdict::Deliver]);
        assert_eq!(inbox.start(1, Seq(3)), Started { gap: 0, repeated: 3 });
        assert_eq!(
            (inbox.jump(Seq(9)), inbox.accept(), inbox.received()),
            (Some(3), Verdict::Deliver, Seq(9))
        );
    }

    #[test]
    fn a_new_epoch_begins_anew() {
        let mut inbox = Inbox::new();
        inbox.start(1, Seq(1));
        inbox.accept();
        assert_eq!(inbox.start(2, Seq(40)), Started { gap: 0, repeated: 0 });
        assert_eq!((inbox.accept(), inbox.received()), (Verdict::Deliver, Seq(40)));
    }
}
