//! Room events of one node, from real fronts: the plain API, socketioxide, and both on one path.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use actix::{Actor, Context, Handler};
use cluster_tests::wait::soon;
use cluster_tests::{Setup, eventually};
use roomcast::config::{EventBuffer, RoomEventBuffer};
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
use roomcast::{Event, Member, RoomEvent, RoomEvents};
use socketioxide::SocketIo;

/// What a listener knows of the rooms when it believes the events.
#[derive(Default)]
struct Replay {
    /// The sockets of each room that exists.
    rooms: BTreeMap<(String, String), BTreeSet<String>>,
    events: usize,
}

impl Replay {
    /// Checks the promise at every event.
    fn take(&mut self, event: &RoomEvent) {
        self.events += 1;
        let (ns, room) = event.place().expect("nothing was missed");
        let name = (ns.to_string(), room.to_string());
        match event {
            RoomEvent::RoomCreated { .. } => {
                assert!(self.rooms.insert(name, BTreeSet::new()).is_none(), "it exists: {event:?}");
            }
            RoomEvent::RoomJoined { socket, .. } => {
                let members = self.rooms.get_mut(&name).expect("created first");
                assert!(members.insert(socket.to_string()), "it is in: {event:?}");
            }
            RoomEvent::RoomLeft { socket, .. } => {
                let members = self.rooms.get_mut(&name).expect("not deleted yet");
                assert!(members.remove(&**socket), "it is not in: {event:?}");
            }
            RoomEvent::RoomDeleted { .. } => {
                assert_eq!(self.rooms.remove(&name), Some(BTreeSet::new()), "{event:?}");
            }
            other => panic!("{other:?}"),
        }
        if let RoomEvent::RoomJoined { .. } = event {
            return;
        }
        let empty = self.rooms.values().filter(|members| members.is_empty()).count();
        assert!(empty <= 1, "a room is empty only between its last leave and its end");
    }

    async fn take_until(&mut self, events: &mut RoomEvents, what: &str, done: impl Fn(&Self) -> bool) {
        let read = async {
            while !done(self) {
                self.take(&events.recv().await.expect("the node runs"));
            }
        };
        soon(what.to_owned(), read).await;
    }
}

/// A small generator of our own: the run is the same every time, as far as threads allow.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    *state >> 33
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_threads_in_three_rooms_are_told_as_they_were() {
    const THREADS: u64 = 8;
    const ROOMS: [&str; 3] = ["lobby", "hall", "attic"];
    let setup = Setup::new("crowded").config(|config| config.room_event_buffer = RoomEventBuffer(1 << 17));
    let nodes = setup.formed(1).await;
    let ns = nodes[0].namespace("/crowded").unwrap();
    let (mut events, mut late) = (ns.room_events(), nodes[0].room_events());
    let movers: Vec<_> = (0..THREADS)
        .map(|thread| {
            let ns = ns.clone();
            std::thread::spawn(move || {
                let mut state = thread;
                let mut members: Vec<Member> = (0..2).map(|_| ns.connect(|_| ())).collect();
                for _ in 0..3_000 {
                    let room = ROOMS[random(&mut state) as usize % 3];
                    let at = random(&mut state) as usize % 2;
                    match random(&mut state) % 20 {
                        0 => members[at] = ns.connect(|_| ()),
                        1 => members[at].leave_all(),
                        2..=10 => members[at].join(room).unwrap(),
                        _ => members[at].leave(room),
                    }
                }
                members
            })
        })
        .collect();
    let members: Vec<Member> = movers.into_iter().flat_map(|mover| mover.join().unwrap()).collect();
    let mut expected = BTreeMap::new();
    for member in &members {
        for room in member.rooms() {
            let name = ("/crowded".to_owned(), room.to_string());
            expected.entry(name).or_insert_with(BTreeSet::new).insert(member.id().to_string());
        }
    }
    // The mark comes after everything else.
    let mark = ns.connect(|_| ());
    mark.join("mark").unwrap();
    for events in [&mut events, &mut late] {
        let mut replay = Replay::default();
        let marked = |replay: &Replay| {
            replay.rooms.values().next_back().is_some_and(|room| room.contains(&mark.id().to_string()))
        };
        replay.take_until(events, "the mark", marked).await;
        assert!(replay.events > 10_000, "{}", replay.events);
        replay.rooms.pop_last();
        assert_eq!(replay.rooms, expected);
    }
    // Members that are dropped leave their rooms, and the rooms go.
    let mut replay = Replay { rooms: expected, events: 0 };
    replay.take(&RoomEvent::RoomCreated { ns: "/crowded".into(), room: "mark".into() });
    let socket = mark.id().to_string().into();
    replay.take(&RoomEvent::RoomJoined { ns: "/crowded".into(), room: "mark".into(), socket });
    drop((members, mark));
    replay.take_until(&mut events, "nobody is left", |replay| replay.rooms.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_fronts_on_one_path_share_their_rooms() {
    for exact in [false, true] {
        let nodes = Setup::new(if exact { "sharedexact" } else { "sharedflood" }).formed(1).await;
        let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
        let constructor = RoomcastAdapterCtr::new_with_config(&nodes[0], config);
        let (_svc, io): (_, SocketIo<Adapter>) =
            SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(constructor).build_svc();
        io.ns("/both", async |socket: Socket| socket.join(["lobby", "io"])).await.unwrap();
        let mut events = nodes[0].room_events().only("/both");
        let mut replay = Replay::default();
        let has = |room: &'static str, members: usize| {
            move |replay: &Replay| {
                let name = ("/both".to_owned(), room.to_owned());
                replay.rooms.get(&name).map_or(0, BTreeSet::len) == members
            }
        };

        // First the sockets, then a plain front on the same path.
        let (tx, rx) = io.new_dummy_sock("/both", ()).await;
        replay.take_until(&mut events, "the socket is in", has("io", 1)).await;
        let plain = nodes[0].namespace("/both").unwrap();
        let member = plain.connect(|_| ());
        member.join("lobby").unwrap();
        member.join("plain").unwrap();
        nodes[0].namespace("/elsewhere").unwrap().connect(|_| ()).join("lobby").unwrap();
        replay.take_until(&mut events, "both are in", has("plain", 1)).await;
        assert!(has("lobby", 2)(&replay));

        // Sockets that the adapter moves count.
        io.of("/both").unwrap().local().join("moved").await.unwrap();
        replay.take_until(&mut events, "moved", has("moved", 1)).await;
        io.of("/both").unwrap().local().leave("moved").await.unwrap();
        replay.take_until(&mut events, "moved back", has("moved", 0)).await;

        // The socket goes, the member stays in the lobby.
        for socket in io.of("/both").unwrap().sockets() {
            socket.disconnect().unwrap();
        }
        drop((tx, rx));
        // The rooms of a socket that goes are in no order.
        let one_left = |replay: &Replay| replay.rooms.len() == 2 && has("lobby", 1)(replay);
        replay.take_until(&mut events, "the socket has gone", one_left).await;
        assert!(has("plain", 1)(&replay));
        drop(member);
        replay.take_until(&mut events, "nobody is left", |r| r.rooms.is_empty()).await;
        nodes[0].stop().await;
        assert_eq!(soon("the end".to_owned(), events.recv()).await, None);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_listener_misses_the_oldest_and_slows_nobody() {
    let setup = Setup::new("slowears").config(|config| config.room_event_buffer = RoomEventBuffer(16));
    let nodes = setup.formed(1).await;
    let mut events = nodes[0].room_events();
    let member = nodes[0].namespace("/slow").unwrap().connect(|_| ());
    for _ in 0..100 {
        member.join("r").unwrap();
        member.leave("r");
    }
    assert_eq!(events.recv().await, Some(RoomEvent::Missed(400 - 16)));
    for name in ["create-room", "join-room", "leave-room", "delete-room"].iter().cycle().take(16) {
        assert_eq!(events.recv().await.unwrap().name(), *name);
    }
}

/// Writes down what it is told, and is stopped from outside.
struct Listener<E> {
    seen: Arc<Mutex<Vec<E>>>,
    /// While it is locked, the actor stands still.
    gate: Arc<Mutex<()>>,
}

impl<E: Unpin + 'static> Actor for Listener<E> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.set_mailbox_capacity(1);
    }
}

impl Handler<RoomEvent> for Listener<RoomEvent> {
    type Result = ();

    fn handle(&mut self, event: RoomEvent, _: &mut Self::Context) {
        drop(self.gate.lock().unwrap());
        self.seen.lock().unwrap().push(event);
    }
}

impl Handler<Event> for Listener<Event> {
    type Result = ();

    fn handle(&mut self, event: Event, _: &mut Self::Context) {
        self.seen.lock().unwrap().push(event);
    }
}

#[test]
fn actors_hear_everything_in_order_or_how_much_they_missed() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let members = Arc::new(Mutex::new(Vec::new()));
    let gate = Arc::new(Mutex::new(()));
    let (tell, told) = std::sync::mpsc::channel();
    let (actor_seen, actor_members, actor_gate) = (seen.clone(), members.clone(), gate.clone());
    let actors = std::thread::spawn(move || {
        let runner = actix::System::new();
        runner.block_on(async move {
            let rooms = Listener { seen: actor_seen, gate: actor_gate.clone() }.start();
            let events = Listener { seen: actor_members, gate: actor_gate }.start();
            tell.send((actix::System::current(), rooms.recipient(), events.recipient())).unwrap();
        });
        runner.run().unwrap();
    });
    let (system, rooms, events) = told.recv().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let setup = Setup::new("actors").config(|config| {
            config.room_event_buffer = RoomEventBuffer(64);
            config.event_buffer = EventBuffer(64);
        });
        let nodes = setup.formed(1).await;
        let node = nodes[0].node.clone();
        // From a thread without a runtime.
        std::thread::spawn(move || {
            node.room_events_to(rooms);
            node.events_to(events);
        })
        .join()
        .unwrap();
        let member = nodes[0].namespace("/actors").unwrap().connect(|_| ());
        let count = || seen.lock().unwrap().len();
        let total = || {
            let seen = seen.lock().unwrap();
            seen.iter().map(|event| if let RoomEvent::Missed(n) = event { *n } else { 1 }).sum::<u64>()
        };

        // Far more than the mailbox holds, far less than the buffer.
        let held = gate.lock().unwrap();
        for _ in 0..10 {
            member.join("r").unwrap();
            member.leave("r");
        }
        drop(held);
        eventually("it has heard all", || count() == 40).await;
        let names: Vec<_> = seen.lock().unwrap().drain(..).map(|event| event.name()).collect();
        assert_eq!(names, ["create-room", "join-room", "leave-room", "delete-room"].repeat(10));

        // More than the buffer holds.
        let held = gate.lock().unwrap();
        for _ in 0..100 {
            member.join("r").unwrap();
            member.leave("r");
        }
        drop(held);
        eventually("all are heard or counted", || total() == 400).await;
        let missed = |event: &RoomEvent| matches!(event, RoomEvent::Missed(_));
        assert!(seen.lock().unwrap().iter().any(missed));
        assert!(!missed(seen.lock().unwrap().last().unwrap()), "the newest are kept");

        let other = setup.start_at(&setup.seat(1), [nodes[0].addr()]).await;
        let joined = |event: &Event| matches!(event, Event::MemberJoined { .. });
        eventually("the other actor hears of members", || members.lock().unwrap().iter().any(joined)).await;
        drop(other);

        // The actors stop: nobody listens any more, at the latest with the next event.
        system.stop();
        actors.join().unwrap();
        eventually("the node goes on", || {
            member.join("r").is_ok() && {
                member.leave("r");
                nodes[0].is_live()
            }
        })
        .await;
        nodes[0].stop().await;
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
}
