//! The secret is changed without a break, in the three steps of `docs/operations.md`: three nodes that talk all the time
//! are replaced one after the other, three times.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster_tests::logs::{self, logged};
use cluster_tests::{Live, Recorder, Seat, Setup, eventually, stamp};
use roomcast::{ClusterSecret, Emitter, Member, Namespace};
use tokio::task::JoinHandle;
use tokio::time::sleep;

const NODES: usize = 3;
const ROOM: &str = "lobby";
/// Between two messages of a node.
const PAUSE: Duration = Duration::from_millis(2);
/// Messages of every other node that have to arrive between two replacements.
const BETWEEN: u64 = 20;

/// What the nodes of one step have.
struct Step {
    own: ClusterSecret,
    also: Option<ClusterSecret>,
}

/// One run of a node, with a member in the room, that says numbers from 1 on until it is told to stop.
struct Run {
    live: Live,
    /// Its name in messages, unlike that of any other run.
    name: String,
    heard: Recorder,
    talk: Arc<Talk>,
    talker: JoinHandle<()>,
    _member: Member,
    /// For each run of another node that talked already: the first number that this one must not miss.
    due_from: Vec<(String, u64)>,
}

#[derive(Default)]
struct Talk {
    said: AtomicU64,
    stop: AtomicBool,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_secret_is_changed_in_three_rolling_steps_and_nothing_is_lost() {
    let setup = Setup::new("rotation");
    let (old, new) = (setup.secret.clone(), ClusterSecret::generate().unwrap());
    let steps = [
        Step { own: old.clone(), also: Some(new.clone()) },
        Step { own: new.clone(), also: Some(old.clone()) },
        Step { own: new.clone(), also: None },
    ];
    let before = Step { own: old.clone(), also: None };
    let mut runs = Vec::new();
    for index in 0..NODES {
        let run = start(&setup, &before, index, &format!("{index}-before"), &runs).await;
        runs.push(run);
    }
    for (number, step) in steps.iter().enumerate() {
        for index in 0..NODES {
            all_hear_all(&runs).await;
            let gone = runs.remove(index);
            let (name, said) = leave(gone).await;
            for run in &runs {
                let what = format!("{} has the last of {name}", run.name);
                eventually(what, || run.has(&name, said)).await;
                run.missed_nothing(&name, said);
            }
            let run = start(&setup, step, index, &format!("{index}-step{}", number + 1), &runs).await;
            runs.insert(index, run);
            emitters_get_in(&setup, [&old, &new], &runs).await;
        }
    }
    all_hear_all(&runs).await;
    for run in &runs {
        run.heard.check();
        for other in runs.iter().filter(|other| other.name != run.name) {
            // They still talk: what was said a moment ago may be on its way.
            let last = other.said();
            eventually(format!("{} hears {} {last}", run.name, other.name), || run.has(&other.name, last))
                .await;
            run.missed_nothing(&other.name, last);
        }
    }
    who_has_the_old_secret_alone_is_refused(&setup, old, &runs).await;
    for run in runs {
        leave(run).await;
    }
}

/// Starts a node and waits until all are linked and know of its member; then it begins to talk.
async fn start(setup: &Setup, step: &Step, index: usize, name: &str, others: &[Run]) -> Run {
    let seat = setup.seat(index);
    let live = launch(setup, step, &seat, others.iter().map(|other| other.live.addr())).await;
    let ns = live.namespace("/rotation").unwrap();
    let heard = Recorder::new();
    let member = ns.connect(heard.clone());
    member.join(ROOM).unwrap();
    let all = || others.iter().map(|other| &other.live).chain([&live]);
    eventually(format!("{name} is one of {} that are linked", others.len() + 1), || {
        all().all(|node| {
            let members = node.members();
            members.len() == others.len() + 1
                && all().filter(|peer| peer.name() != node.name()).all(|peer| node.is_linked_to(peer.name()))
        })
    })
    .await;
    member.settled().await;
    // What is said from now on is for it; one more may be on its way already.
    let due_from = others.iter().map(|other| (other.name.clone(), other.said() + 2)).collect();
    let talk = Arc::new(Talk::default());
    let talker = tokio::spawn(say_numbers(ns, name.to_owned(), Arc::clone(&talk)));
    Run { live, name: name.to_owned(), heard, talk, talker, _member: member, due_from }
}

async fn launch(
    setup: &Setup,
    step: &Step,
    seat: &Seat,
    seeds: impl IntoIterator<Item = SocketAddr>,
) -> Live {
    let builder = setup.builder(seat).secret(step.own.clone()).seeds(seeds);
    let builder = match &step.also {
        Some(also) => builder.also_accept(also.clone()),
        None => builder,
    };
    setup.launch(seat, builder).await
}

async fn say_numbers(ns: Namespace, name: String, talk: Arc<Talk>) {
    while !talk.stop.load(Ordering::SeqCst) {
        let number = talk.said.load(Ordering::SeqCst) + 1;
        ns.to(ROOM).emit(stamp(&name, number)).unwrap();
        talk.said.store(number, Ordering::SeqCst);
        sleep(PAUSE).await;
    }
}

/// Says no more and leaves in order. Returns its name and its last number.
async fn leave(run: Run) -> (String, u64) {
    run.talk.stop.store(true, Ordering::SeqCst);
    run.talker.await.unwrap();
    run.heard.check();
    run.live.drain().await;
    run.live.node.stop().await;
    (run.name, run.talk.said.load(Ordering::SeqCst))
}

/// Waits until everyone has heard some more of everyone.
async fn all_hear_all(runs: &[Run]) {
    let due: Vec<_> = runs.iter().map(|run| (run.name.clone(), run.said() + BETWEEN)).collect();
    for run in runs {
        for (name, number) in due.iter().filter(|(name, _)| *name != run.name) {
            eventually(format!("{} hears {name} {number}", run.name), || run.has(name, *number)).await;
            run.missed_nothing(name, *number);
        }
    }
}

impl Run {
    /// The last number that it has said.
    fn said(&self) -> u64 {
        self.talk.said.load(Ordering::SeqCst)
    }

    fn has(&self, name: &str, number: u64) -> bool {
        self.heard.numbers(name).last().is_some_and(|last| *last >= number)
    }

    /// Checks that it has every number of that run since both were there.
    fn missed_nothing(&self, name: &str, last: u64) {
        let from = self.due_from.iter().find(|(other, _)| other == name).map_or(1, |(_, from)| *from);
        let numbers = self.heard.numbers(name);
        let missing: Vec<u64> =
            (from..=last).filter(|number| numbers.binary_search(number).is_err()).take(20).collect();
        assert!(missing.is_empty(), "{} lacks of {name}: {missing:?} of {from} to {last}", self.name);
    }
}

/// One that has both secrets, whichever it shows, is let in by every node, as long as the nodes have both.
async fn emitters_get_in(setup: &Setup, secrets: [&ClusterSecret; 2], runs: &[Run]) {
    let last = runs.iter().any(|run| run.name.ends_with("step3"));
    let first = runs.iter().any(|run| run.name.ends_with("before"));
    if first || last {
        return;
    }
    for run in runs {
        for [own, also] in [secrets, [secrets[1], secrets[0]]] {
            let builder = Emitter::builder().cluster(&setup.cluster).seeds([run.live.addr()]);
            let builder = builder.secret(own.clone()).also_accept(also.clone());
            let emitter = builder.connect().await.unwrap();
            emitter.close().await.unwrap();
        }
    }
}

async fn who_has_the_old_secret_alone_is_refused(setup: &Setup, old: ClusterSecret, runs: &[Run]) {
    let reason = "another cluster secret";
    for run in runs {
        assert_eq!(logs::count(run.live.name(), &[reason]), 0, "no step kept a node out");
    }
    let seat = setup.seat(NODES);
    let seeds = runs.iter().map(|run| run.live.addr());
    let late = launch(setup, &Step { own: old, also: None }, &seat, seeds).await;
    logged(late.name(), &["failed to link", reason]).await;
    for run in runs {
        logged(run.live.name(), &["incoming connection refused", reason]).await;
        assert_eq!(run.live.members().len(), NODES);
    }
    assert!(late.report().links.is_empty());
    late.node.stop().await;
}
