//! Receipts of broadcasts and orders, which the results of socketioxide have no place for.

use std::cell::RefCell;
use std::future::poll_fn;
use std::pin::pin;

use crate::hub::Receipt;

thread_local! {
    /// What was sent while this thread polls the future of a [`with_receipt`]; none while it polls no such future.
    static COLLECTED: RefCell<Option<Receipt>> = const { RefCell::new(None) };
}

/// Runs a future and tells what became of the broadcasts and orders (`join`, `leave` and `disconnect` of sockets anywhere)
/// in it, as far as this node can tell: for how many other nodes they were, and which of these do not have them in their
/// queues and why.
///
/// Several are added up: a node that two of them are for counts twice, and `dropped` is one list. What is sent by tasks that
/// the future spawns is not seen. A receipt inside another counts for both. Nothing waits for a peer,
/// unless the policy of the node is [`QueuePolicy::Wait`](crate::config::QueuePolicy::Wait).
///
/// Dropping the future drops its receipt, not what was sent.
///
/// ```
/// use roomcast::socketioxide::{Adapter, with_receipt};
///
/// # async fn doc(io: socketioxide::SocketIo<Adapter>) {
/// let (emitted, receipt) = with_receipt(io.to("lobby").emit("news", "hello")).await;
/// if emitted.is_ok() && !receipt.dropped.is_empty() {
///     println!("{} of {} nodes have it queued", receipt.queued, receipt.targeted);
/// }
/// # }
/// ```
pub async fn with_receipt<F: Future>(future: F) -> (F::Output, Receipt) {
    let mut future = pin!(future);
    let mut receipt = Receipt::default();
    let output = poll_fn(|cx| {
        let _collecting = Collecting::begin(&mut receipt);
        future.as_mut().poll(cx)
    })
    .await;
    (output, receipt)
}

/// Adds a receipt to those that are being collected on this thread, if any are.
pub(super) fn collect(receipt: Receipt) {
    COLLECTED.with_borrow_mut(|collected| {
        if let Some(collected) = collected {
            add(collected, receipt);
        }
    });
}

fn add(sum: &mut Receipt, receipt: Receipt) {
    let Receipt { targeted, queued, dropped } = receipt;
    sum.targeted += targeted;
    sum.queued += queued;
    sum.dropped.extend(dropped);
}

/// One poll: while it lives, receipts of this thread are collected. Also ends when the future panics.
struct Collecting<'a> {
    receipt: &'a mut Receipt,
    /// What the future around this one has collected so far.
    outer: Option<Receipt>,
}

impl<'a> Collecting<'a> {
    fn begin(receipt: &'a mut Receipt) -> Self {
        Self { receipt, outer: COLLECTED.replace(Some(Receipt::default())) }
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        let now = COLLECTED.replace(self.outer.take()).unwrap_or_default();
        // At each poll, not at the end: the future around this one may drop it half-way.
        collect(now.clone());
        add(self.receipt, now);
    }
}
