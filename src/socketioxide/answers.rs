//! Whose answers are missing, which the results of socketioxide have no place for.

use std::cell::RefCell;
use std::fmt;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Mutex};

use crate::hub::lock;
use crate::hub::requests::{Missing, Standing};

thread_local! {
    /// Those who collect what is asked while this thread polls their futures, the outermost first.
    static COLLECTING: RefCell<Vec<Answers>> = const { RefCell::new(Vec::new()) };
}

/// How the questions to other nodes stand that a future of [`with_answers`] has asked. A cheap clone.
#[derive(Clone, Default)]
pub struct Answers {
    questions: Arc<Mutex<Vec<Standing>>>,
}

impl Answers {
    /// The nodes whose share is missing, and why: so far, as long as an acknowledgement stream runs; for good, once it has
    /// ended. A node is named for each question that it did not answer in full.
    ///
    /// A stream that is dropped before its end gives up: nodes that had not finished are named as timed out.
    pub fn missing(&self) -> Vec<Missing> {
        self.questions().iter().flat_map(Standing::missing).collect()
    }

    /// Whether every node that was asked has answered in full. False while answers are awaited; true when nobody was asked.
    pub fn is_complete(&self) -> bool {
        self.questions().iter().all(Standing::is_complete)
    }

    fn questions(&self) -> Vec<Standing> {
        lock(&self.questions).clone()
    }

    /// The questions that are kept.
    #[cfg(test)]
    pub(super) fn noted(&self) -> usize {
        lock(&self.questions).len()
    }

    fn note(&self, question: &Standing) {
        let mut questions = lock(&self.questions);
        if questions.len() == questions.capacity() {
            // Before it grows, forget what says nothing: a future may ask without end.
            questions.retain(|question| !question.is_complete());
        }
        questions.push(question.clone());
    }
}

impl fmt::Debug for Answers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (missing, complete) = (self.missing(), self.is_complete());
        f.debug_struct("Answers").field("missing", &missing).field("is_complete", &complete).finish()
    }
}

/// Runs a future and tells which nodes' answers are missing in what it asked the cluster: `emit_with_ack`, `rooms` and
/// `fetch_sockets`, which themselves return what came.
///
/// Several questions are put together. What is asked by tasks that the future spawns is not seen. Inside another
/// `with_answers`, both see it. Dropping the future changes nothing for what it asked.
///
/// ```
/// use roomcast::socketioxide::{Adapter, with_answers};
///
/// # async fn doc(io: socketioxide::SocketIo<Adapter>) {
/// let (sockets, answers) = with_answers(io.to("lobby").fetch_sockets()).await;
/// let sockets = sockets.map_or(0, |sockets| sockets.len());
/// for missing in answers.missing() {
///     println!("at least {sockets} sockets, not counting those of {missing}");
/// }
/// # }
/// ```
pub async fn with_answers<F: Future>(future: F) -> (F::Output, Answers) {
    let mut future = pin!(future);
    let answers = Answers::default();
    let output = poll_fn(|cx| {
        let _collecting = Collecting::begin(&answers);
        future.as_mut().poll(cx)
    })
    .await;
    (output, answers)
}

/// Notes a question for those who collect on this thread.
pub(super) fn collect(question: &Standing) {
    COLLECTING.with_borrow(|collecting| {
        collecting.iter().for_each(|answers| answers.note(question));
    });
}

/// One poll: while it lives, questions of this thread are collected. Also ends when the future panics.
struct Collecting;

impl Collecting {
    fn begin(answers: &Answers) -> Self {
        COLLECTING.with_borrow_mut(|collecting| collecting.push(answers.clone()));
        Self
    }
}

impl Drop for Collecting {
    fn drop(&mut self) {
        COLLECTING.with_borrow_mut(|collecting| drop(collecting.pop()));
    }
}
