//! A node that receives: it counts, checks, and sends back what asks for that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use tokio::sync::{mpsc, watch};

use crate::Outcome;
use crate::control::Standing;
use crate::message::{ACK, ECHO, FINAL, Message, PROBE};
use crate::wires::Wire;

/// What came. One message at a time is taken; the atomics are for those who look.
pub(crate) struct Arrivals {
    /// Whether the system promises the order of one sender.
    ordered: bool,
    /// Whether this receiver answers.
    answers: bool,
    count: AtomicU64,
    /// All numbers, added up.
    sum: AtomicU64,
    /// As many are wanted before the next word to the emitter.
    wanted: AtomicU64,
    /// What was wanted when the emitter was told the last time.
    told: AtomicU64,
    last: AtomicBool,
    wrong: AtomicBool,
    ready: AtomicBool,
    tell: watch::Sender<Standing>,
    back: mpsc::UnboundedSender<Message>,
}

impl Arrivals {
    /// The channels are to the control connection and to [`answer`].
    pub(crate) fn new(
        ordered: bool,
        answers: bool,
        tell: watch::Sender<Standing>,
        back: mpsc::UnboundedSender<Message>,
    ) -> Arc<Self> {
        Arc::new(Self {
            ordered,
            answers,
            count: AtomicU64::new(0),
            sum: AtomicU64::new(0),
            wanted: AtomicU64::new(0),
            told: AtomicU64::new(0),
            last: AtomicBool::new(false),
            wrong: AtomicBool::new(false),
            ready: AtomicBool::new(false),
            tell,
            back,
        })
    }

    /// A message came.
    pub(crate) fn take(&self, message: Message) {
        if message.is(ECHO | PROBE) {
            if self.answers {
                // It fails when the receiver ends.
                let _ = self.back.send(message);
            }
            if message.is(PROBE) && !self.ready.swap(true, Relaxed) {
                self.tell(self.count.load(Relaxed));
            }
            return;
        }
        let before = self.count.load(Relaxed);
        let count = before + 1;
        self.count.store(count, Relaxed);
        self.sum.store(self.sum.load(Relaxed).wrapping_add(message.number()), Relaxed);
        if self.ordered && message.number() != before {
            self.wrong.store(true, Relaxed);
        }
        if message.is(ACK) {
            self.wanted.fetch_max(message.number() + 1, Relaxed);
            self.last.store(message.is(FINAL), Relaxed);
        }
        let wanted = self.wanted.load(Relaxed);
        if count >= wanted && self.told.swap(wanted, Relaxed) < wanted {
            let sum = u128::from(self.sum.load(Relaxed));
            if self.last.load(Relaxed) && count == wanted && sum != u128::from(count) * u128::from(before) / 2
            {
                self.wrong.store(true, Relaxed);
            }
            self.tell(count);
        }
    }

    fn tell(&self, count: u64) {
        let (ready, wrong) = (self.ready.load(Relaxed), self.wrong.load(Relaxed));
        self.tell.send_replace(Standing { count, ready, wrong });
    }
}

/// Sends back what came for that, as much at once as there is.
pub(crate) async fn answer<W: Wire>(mut wire: W, mut back: mpsc::UnboundedReceiver<Message>) -> Outcome<()> {
    let mut messages = Vec::new();
    while back.recv_many(&mut messages, 100).await > 0 {
        match messages[..] {
            [message] => wire.send_now(message).await?,
            _ => wire.send(&messages).await?,
        }
        messages.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the emitter hears at last when these come, the last of them as the end of a round.
    fn heard(ordered: bool, numbers: &[u64]) -> Standing {
        let (tell, standing) = watch::channel(Standing::default());
        let arrivals = Arrivals::new(ordered, false, tell, mpsc::unbounded_channel().0);
        let last = numbers.len() as u64 - 1;
        for &number in numbers {
            let marks = if number == last { ACK | FINAL } else { 0 };
            arrivals.take(Message { word: number | marks, length: 64 });
        }
        *standing.borrow()
    }

    #[test]
    fn all_of_them_in_order_are_right() {
        let standing = heard(true, &[0, 1, 2, 3]);
        assert!(standing.count == 4 && !standing.wrong);
    }

    #[test]
    fn disorder_is_wrong_only_where_order_is_promised() {
        assert!(heard(true, &[0, 2, 1, 3]).wrong);
        let standing = heard(false, &[0, 3, 1, 2]);
        assert!(standing.count == 4 && !standing.wrong);
    }

    #[test]
    fn one_twice_in_place_of_another_is_wrong() {
        assert!(heard(false, &[0, 1, 1, 3]).wrong);
    }

    #[test]
    fn nothing_is_said_before_all_are_there() {
        let (tell, standing) = watch::channel(Standing::default());
        let arrivals = Arrivals::new(true, false, tell, mpsc::unbounded_channel().0);
        arrivals.take(Message { word: 0, length: 64 });
        assert!(!standing.has_changed().unwrap());
    }
}
