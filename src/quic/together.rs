//! Two futures in one task, for the two directions of a link.
//!
//! An answer (a frame comes in, a member emits, a frame goes out) then takes one task less on its way. That matters
//! beyond the cost of the task: tokio runs what a task wakes next on the same thread at most 3 times in a row, then it
//! wakes another thread, which on an idle machine takes longer than all the rest of the way.

use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};

use crate::hub::lock;

/// How often the two are polled before other tasks get a turn, while they keep waking each other.
const TURNS: usize = 32;

/// Runs two futures until the first of them ends. Each is polled only when it was woken itself, and neither is when the
/// other is not done with its own poll: what one does for the other is seen right after.
pub(crate) async fn either<T>(one: impl Future<Output = T>, other: impl Future<Output = T>) -> T {
    let (mut one, mut other) = (pin!(one), pin!(other));
    let task = Arc::new(Task {
        waker: Mutex::new(Waker::noop().clone()),
        woken: AtomicU8::new(ONE | OTHER),
        polling: AtomicBool::new(false),
    });
    let waker = |part| Waker::from(Arc::new(Part { task: Arc::clone(&task), part }));
    let (one_waker, other_waker) = (waker(ONE), waker(OTHER));
    std::future::poll_fn(|cx| {
        lock(&task.waker).clone_from(cx.waker());
        for _ in 0..TURNS {
            task.polling.store(true, Ordering::SeqCst);
            let woken = task.woken.swap(0, Ordering::SeqCst);
            if woken & ONE != 0
                && let Poll::Ready(end) = one.as_mut().poll(&mut Context::from_waker(&one_waker))
            {
                return Poll::Ready(end);
            }
            if woken & OTHER != 0
                && let Poll::Ready(end) = other.as_mut().poll(&mut Context::from_waker(&other_waker))
            {
                return Poll::Ready(end);
            }
            // From here on whoever wakes one of the two wakes the task; until here it is for us to see.
            task.polling.store(false, Ordering::SeqCst);
            if task.woken.load(Ordering::SeqCst) == 0 {
                return Poll::Pending;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await
}

/// Lets the other future of [`either`] run, if it was woken. Elsewhere it lets the task be polled again.
pub(crate) async fn give_way() {
    let mut given = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut given, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

const ONE: u8 = 1;
const OTHER: u8 = 2;

struct Task {
    waker: Mutex<Waker>,
    /// The futures that were woken.
    woken: AtomicU8,
    /// Whether the task looks at `woken` before it rests.
    polling: AtomicBool,
}

struct Part {
    task: Arc<Task>,
    part: u8,
}

impl Wake for Part {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.task.woken.fetch_or(self.part, Ordering::SeqCst);
        if !self.task.polling.load(Ordering::SeqCst) {
            let waker = lock(&self.task.waker).clone();
            waker.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::{Notify, mpsc};
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn no_wake_is_lost_from_inside_or_from_another_thread() {
        const ROUNDS: u64 = 20_000;
        let (to, mut from) = mpsc::channel::<u64>(4);
        let (back, mut answers) = mpsc::channel::<u64>(4);
        let asker = tokio::spawn(async move {
            for round in 0..ROUNDS {
                to.send(round).await.unwrap();
                if round % 64 == 0 {
                    yield_now().await;
                }
            }
        });
        let listener = tokio::spawn(async move {
            for round in 0..ROUNDS {
                assert_eq!(answers.recv().await, Some(round));
            }
        });
        let (inner, mut queue) = mpsc::unbounded_channel();
        let both = either(
            async {
                while let Some(round) = from.recv().await {
                    inner.send(round).unwrap();
                    if round % 7 == 0 {
                        give_way().await;
                    }
                }
                std::future::pending::<()>().await;
            },
            async {
                for _ in 0..ROUNDS {
                    back.send(queue.recv().await.unwrap()).await.unwrap();
                }
            },
        );
        tokio::time::timeout(std::time::Duration::from_secs(30), both).await.unwrap();
        asker.await.unwrap();
        listener.await.unwrap();
    }

    #[tokio::test]
    async fn two_that_wake_each_other_for_ever_leave_others_their_turn() {
        let (here, there) = (Notify::new(), Notify::new());
        let rally = either(
            async {
                loop {
                    there.notify_one();
                    here.notified().await;
                }
            },
            async {
                loop {
                    there.notified().await;
                    here.notify_one();
                }
            },
        );
        let end: Option<()> = tokio::select! {
            biased;
            () = rally => None,
            () = async { for _ in 0..10 { yield_now().await } } => Some(()),
        };
        assert_eq!(end, Some(()));
    }
}
