//! Rooms that open and close in the whole cluster, as a watching node hears of them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use actix::{Actor, Context, Handler};
use cluster_tests::cluster::formed;
use cluster_tests::wait::soon;
use cluster_tests::{Live, Setup, eventually};
use roomcast::config::{RoomEventBuffer, WatchedRooms};
use roomcast::{Member, MemberState, Namespace, RoomEvent, RoomWatch};

/// What a listener knows when it believes the events; checks that they alternate.
struct Open {
    watch: RoomWatch,
    rooms: BTreeSet<String>,
    events: usize,
}

impl Open {
    fn of(node: &Live) -> Self {
        Self { watch: node.watch_rooms(), rooms: BTreeSet::new(), events: 0 }
    }

    async fn take(&mut self) -> RoomEvent {
        let event = soon("a room event", self.watch.recv()).await.expect("the node runs");
        self.events += 1;
        match &event {
            RoomEvent::RoomOpened { ns, room } => {
                assert!(self.rooms.insert(format!("{ns} {room}")), "{event:?}")
            }
            RoomEvent::RoomClosed { ns, room } => {
                assert!(self.rooms.remove(&format!("{ns} {room}")), "{event:?}")
            }
            other => panic!("{other:?}"),
        }
        event
    }

    async fn until(&mut self, rooms: &[&str]) {
        let rooms: BTreeSet<String> = rooms.iter().map(|room| (*room).to_owned()).collect();
        while self.rooms != rooms {
            self.take().await;
        }
    }
}

fn chat(node: &Live) -> Namespace {
    node.namespace("/chat").unwrap()
}

fn member(ns: &Namespace, rooms: &[&str]) -> Member {
    let member = ns.connect(|_| {});
    rooms.iter().for_each(|room| member.join(room).unwrap());
    member
}

/// Waits until all that was told has arrived: a room of its own, opened and closed on each node, comes after it. Each time
/// it is another room, because who is behind may still have to hear of the one before.
async fn flush(open: &mut Open, nodes: &[&Live]) {
    static ROUND: AtomicU64 = AtomicU64::new(0);
    for node in nodes {
        let name = format!("flush-{}-{}", node.name(), ROUND.fetch_add(1, Ordering::Relaxed));
        let last = member(&node.namespace("/flush").unwrap(), &[&name]);
        while !open.rooms.contains(&format!("/flush {name}")) {
            open.take().await;
        }
        drop(last);
        while open.rooms.contains(&format!("/flush {name}")) {
            open.take().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_room_opens_with_the_first_member_anywhere_and_closes_with_the_last() {
    let nodes = Setup::new("open").formed(3).await;
    let before = member(&chat(&nodes[1]), &["before", "shared"]);
    let mut open = Open::of(&nodes[0]);
    open.until(&["/chat before", "/chat shared"]).await;
    let other = member(&chat(&nodes[2]), &["shared"]);
    // What the third node says is known: else "shared" could close for a moment.
    flush(&mut open, &[&nodes[2]]).await;
    let events = open.events;
    let own = member(&nodes[0].namespace("/other").unwrap(), &["own"]);
    open.until(&["/chat before", "/chat shared", "/other own"]).await;
    drop(before);
    open.until(&["/chat shared", "/other own"]).await;
    drop((other, own));
    open.until(&[]).await;
    assert_eq!(open.events, events + 4, "shared opened and closed once, whoever had it");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_node_closes_its_rooms_and_a_new_run_opens_its_own() {
    let setup = Setup::new("deadrooms");
    let mut nodes = setup.formed(3).await;
    let _shared = member(&chat(&nodes[1]), &["shared"]);
    let lost = member(&chat(&nodes[2]), &["shared", "lost"]);
    let mut open = Open::of(&nodes[0]);
    open.until(&["/chat shared", "/chat lost"]).await;
    let dead = nodes.pop().unwrap();
    let seeds = [nodes[0].addr()];
    dead.kill().await;
    drop(lost);
    open.until(&["/chat shared"]).await;
    let seat = setup.seat(2);
    let again = setup.start_at(&seat, seeds).await;
    let _new = member(&chat(&again), &["new", "shared"]);
    open.until(&["/chat shared", "/chat new"]).await;
    flush(&mut open, &[&nodes[0], &nodes[1], &again]).await;
    assert_eq!(open.rooms.len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_split_closes_what_is_on_the_other_side_and_healing_says_only_what_differs() {
    let nodes = Setup::new("splitrooms").formed(2).await;
    let far = member(&chat(&nodes[1]), &["far", "both", "goes"]);
    let _near = member(&chat(&nodes[0]), &["both"]);
    let mut open = Open::of(&nodes[0]);
    open.until(&["/chat far", "/chat both", "/chat goes"]).await;
    nodes[1].gate.cut();
    // "both" stays open: it has a member on this side.
    open.until(&["/chat both"]).await;
    eventually("the other side is given up", || {
        let other = nodes[0].members().into_iter().find(|member| member.id == *nodes[1].id());
        other.is_none_or(|member| member.state == MemberState::Dead)
    })
    .await;
    far.leave("goes");
    far.join("comes").unwrap();
    let events = open.events;
    nodes[1].gate.heal();
    formed(&nodes).await;
    open.until(&["/chat far", "/chat both", "/chat comes"]).await;
    flush(&mut open, &[&nodes[0], &nodes[1]]).await;
    assert_eq!(open.events, events + 2 + 4, "far and comes opened, nothing else");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_that_come_and_go_on_every_node_alternate_and_end_right() {
    let setup = Setup::new("churnrooms").config(|config| config.room_event_buffer = RoomEventBuffer(1 << 17));
    let nodes = setup.formed(3).await;
    let mut early = Open::of(&nodes[0]);
    let all: Vec<&Live> = nodes.iter().collect();
    // It hears all three before they begin: else it may be told no more than how things stand in the end.
    flush(&mut early, &all).await;
    let churn = |node: &Live, seed: u64| {
        let ns = chat(node);
        std::thread::spawn(move || {
            let member = ns.connect(|_| {});
            let mut state = seed;
            for _ in 0..20_000 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let room = format!("r{}", (state >> 33) % 12);
                if (state >> 40).is_multiple_of(2) {
                    member.join(&room).unwrap()
                } else {
                    member.leave(&room)
                }
            }
            member
        })
    };
    let threads: Vec<_> = nodes.iter().zip([3, 5, 7]).map(|(node, seed)| churn(node, seed)).collect();
    // One that begins in the middle of it, so that its lists and the changes after them have to fit.
    let mut late = Open::of(&nodes[1]);
    // Missing events are another test's: these listeners keep up.
    while !threads.iter().all(std::thread::JoinHandle::is_finished) {
        tokio::select! {
            _ = early.take() => {}
            _ = late.take() => {}
            () = tokio::time::sleep(std::time::Duration::from_millis(5)) => {}
        }
    }
    let members: Vec<Member> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    flush(&mut early, &all).await;
    flush(&mut late, &all).await;
    let expected: BTreeSet<String> =
        members.iter().flat_map(Member::rooms).map(|room| format!("/chat {room}")).collect();
    assert_eq!((&early.rooms, &late.rooms), (&expected, &expected));
    assert!(early.events > 100, "{} events", early.events);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_too_slow_is_told_how_many_are_missing_and_who_watches_too_much_hears_no_more() {
    let setup = Setup::new("slowrooms").config(|config| {
        config.room_event_buffer = RoomEventBuffer(8);
        config.watched_rooms = WatchedRooms(50);
    });
    let nodes = setup.formed(2).await;
    let mut watch = nodes[0].watch_rooms();
    let far = nodes[1].namespace("/slow").unwrap();
    let names: Vec<String> = (0..200).map(|room| format!("r{room}")).collect();
    let member = member(&far, &names.iter().map(String::as_str).collect::<Vec<_>>());
    let mut own = Open::of(&nodes[1]);
    while own.rooms.len() < 50 {
        // The other listener of the same size, which keeps up as far as it may: what it misses is its own concern.
        match soon("a room event", own.watch.recv()).await.unwrap() {
            RoomEvent::RoomOpened { room, .. } => own.rooms.extend([room.to_string()]),
            RoomEvent::Missed(missed) => own.rooms.extend((0..missed).map(|n| format!("missed {n}"))),
            other => panic!("{other:?}"),
        }
    }
    let (mut opened, mut missed) = (0, 0);
    while opened + missed < 50 {
        match soon("a room event", watch.recv()).await.unwrap() {
            RoomEvent::RoomOpened { .. } => opened += 1,
            RoomEvent::Missed(events) => missed += events,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(opened + missed, 50, "as many rooms as are held");
    assert!(opened >= 8, "{opened}");
    // The node was never slowed: what is after the gap is heard. Rooms that were left out may open for a moment where a
    // place is free.
    drop(member);
    let (mut closed, mut opened) = (0, 0);
    while closed < 50 + opened {
        match soon("a room event", watch.recv()).await.unwrap() {
            RoomEvent::RoomClosed { .. } => closed += 1,
            RoomEvent::RoomOpened { .. } => opened += 1,
            RoomEvent::Missed(events) => closed += events,
            other => panic!("{other:?}"),
        }
    }
}

/// Writes down the names of what it hears.
struct Listener(Arc<Mutex<Vec<String>>>);

impl Actor for Listener {
    type Context = Context<Self>;
}

impl Handler<RoomEvent> for Listener {
    type Result = ();

    fn handle(&mut self, event: RoomEvent, _: &mut Self::Context) {
        let (_, room) = event.place().unwrap();
        self.0.lock().unwrap().push(format!("{} {room}", event.name()));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn actors_hear_of_the_rooms_of_the_cluster() {
    let nodes = Setup::new("actorrooms").formed(2).await;
    let seen: Arc<Mutex<Vec<String>>> = Arc::default();
    let (tell, told) = std::sync::mpsc::channel();
    let heard = Arc::clone(&seen);
    let actors = std::thread::spawn(move || {
        let runner = actix::System::new();
        runner.block_on(async move {
            tell.send((actix::System::current(), Listener(heard).start().recipient())).unwrap();
        });
        runner.run().unwrap();
    });
    let (system, recipient) = told.recv().unwrap();
    nodes[0].watch_rooms_to(recipient);
    let far = member(&chat(&nodes[1]), &["far"]);
    eventually("it has opened", || *seen.lock().unwrap() == ["room-opened far"]).await;
    drop(far);
    eventually("it is closed", || *seen.lock().unwrap() == ["room-opened far", "room-closed far"]).await;
    system.stop();
    actors.join().unwrap();
}
