//! The plain API asks the cluster: acknowledgements (what ends them: `plain/acks.rs`), orders to members anywhere, who
//! is where.

mod acks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cluster_tests::cluster::formed;
use cluster_tests::wait::soon;
use cluster_tests::{Live, Recorder, Setup, eventually, stamp};
use roomcast::{
    AckError, Acks, AskError, DropReason, Emit, EmitError, Member, MissingReason, Namespace, NodeId, Sink,
};

/// Longer than any test may take.
const LONG: Duration = Duration::from_secs(60);
/// Who there is in [`World`]: the node, the name, the rooms.
const PEOPLE: [(usize, &str, &[&str]); 5] = [
    (0, "ann", &["r", "s"]),
    (1, "bob", &["r"]),
    (1, "cid", &["s", "t"]),
    (2, "dan", &["r", "quiet"]),
    (2, "eve", &[]),
];

/// Three nodes, each of which knows who is on the others.
struct World {
    nodes: Vec<Live>,
    handles: Vec<Namespace>,
    members: BTreeMap<&'static str, Member>,
}

impl World {
    /// Members acknowledge each message with their name.
    async fn new(setup: &Setup) -> Self {
        let nodes = setup.formed(3).await;
        let handles = open(&nodes);
        let members = PEOPLE.into_iter().map(|(at, name, rooms)| {
            let member = handles[at].connect_with_ack(move |_, ack| ack.send(name));
            member.set_data(name).unwrap();
            rooms.iter().for_each(|room| member.join(room).unwrap());
            (name, member)
        });
        let members = members.collect();
        for handle in &handles {
            sizes_are(handle, &[("quiet", 1), ("r", 3), ("s", 2), ("t", 1)]).await;
            until("all are known", async || *handle.sockets_count().await.unwrap() == 5).await;
        }
        Self { nodes, handles, members }
    }

    /// What each kind of question says of a selection.
    async fn check<'a>(&self, what: &str, select: impl Fn() -> Emit<'a>, expected: &[&str]) {
        let expected: BTreeSet<String> = expected.iter().map(|name| String::from(*name)).collect();
        let count = select().count().await.unwrap();
        assert_eq!((*count, count.is_complete()), (expected.len() as u64, true), "{what}");

        let sockets = select().sockets().await.unwrap();
        let names: Vec<String> =
            sockets.iter().map(|socket| String::from_utf8(socket.data.to_vec()).unwrap()).collect();
        assert_eq!((names.len(), names.into_iter().collect()), (expected.len(), expected.clone()), "{what}");
        for socket in sockets.iter() {
            let person = PEOPLE.iter().find(|person| person.1.as_bytes() == socket.data).unwrap();
            let mut rooms = person.2.to_vec();
            rooms.sort_unstable();
            assert_eq!(
                (socket.node.as_str(), &socket.rooms[..]),
                (self.nodes[person.0].name(), &own(&rooms)[..])
            );
            assert_eq!((&socket.server, socket.member()), (&None, Some(self.members[person.1].id())));
        }

        let rooms = PEOPLE.iter().filter(|person| expected.contains(person.1)).flat_map(|person| person.2);
        let rooms: BTreeSet<&str> = rooms.copied().collect();
        assert_eq!(
            select().rooms().await.unwrap().value,
            own(&rooms.into_iter().collect::<Vec<_>>()),
            "{what}"
        );

        let mut acks = select().emit_with_ack("who?", LONG).unwrap();
        let given = all(&mut acks).await;
        assert_eq!(acks.missing(), [], "{what}");
        assert_eq!(given.len(), expected.len(), "once each: {what}");
        for (name, (node, result)) in &given {
            assert_eq!(result.as_deref(), Ok(name.1.as_bytes()), "{what}");
            assert_eq!(*node, node_of(&self.members[&*name.1], &self.nodes), "{what}");
        }
        assert_eq!(given.into_keys().map(|(_, name)| name).collect::<BTreeSet<_>>(), expected, "{what}");
    }
}

/// The node of a member, by who it is.
fn node_of(member: &Member, nodes: &[Live]) -> NodeId {
    let person = PEOPLE.iter().find(|person| person.1.as_bytes() == member.data()).unwrap();
    nodes[person.0].id().clone()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_selection_means_the_same_members_to_every_question() {
    let world = World::new(&Setup::new("selections")).await;
    for (at, ns) in world.handles.iter().enumerate() {
        let check = async |what: &str, select: &dyn Fn() -> Emit<'static>, expected: &[&str]| {
            world.check(&format!("{what} from node {at}"), select, expected).await;
        };
        // The handle lives as long as the test: what is selected with it may be made anywhere.
        let ns: &'static Namespace = Box::leak(Box::new(ns.clone()));
        check("nobody is there", &|| ns.to("nobody"), &[]).await;
        check("no rooms", &|| ns.to([""; 0]), &[]).await;
        check("all is left out", &|| ns.to("r").except("r"), &[]).await;
        check("one", &|| ns.to("quiet"), &["dan"]).await;
        check("one beside nobody", &|| ns.within(["t", "nobody"]), &["cid"]).await;
        check("many", &|| ns.to("r"), &["ann", "bob", "dan"]).await;
        check("in two of the rooms", &|| ns.to(["r", "s", "t"]), &["ann", "bob", "cid", "dan"]).await;
        check("rooms but", &|| ns.to(["r", "s"]).except("quiet"), &["ann", "bob", "cid"]).await;
        check("all", &|| ns.all(), &["ann", "bob", "cid", "dan", "eve"]).await;
        check("all but", &|| ns.all().except(["r", "quiet"]), &["cid", "eve"]).await;
        let here: Vec<&str> = PEOPLE.iter().filter(|person| person.0 == at).map(|person| person.1).collect();
        check("here", &|| ns.all().local(), &here).await;
        for (there, name, _) in PEOPLE {
            let (node, member) = (world.nodes[there].id(), world.members[name].id());
            let node: &'static NodeId = Box::leak(Box::new(node.clone()));
            check("one by its number", &move || ns.member(node, member), &[name]).await;
        }
        assert_eq!(*ns.room_size("r").await.unwrap(), 3);
        assert_eq!(*ns.room_size("nobody").await.unwrap(), 0);
    }
    for node in &world.nodes {
        let node = &node.node;
        eventually("nothing is left", || node.pending_requests() == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_leaves_itself_out_of_what_it_asks() {
    let world = World::new(&Setup::new("sender")).await;
    for (_, name, _) in PEOPLE {
        let member = &world.members[name];
        let but = |people: &[&'static str]| -> Vec<&'static str> {
            people.iter().copied().filter(|other| *other != name).collect()
        };
        world.check(name, || member.to("r"), &but(&["ann", "bob", "dan"])).await;
        world.check(name, || member.within(["r", "s"]), &but(&["ann", "bob", "cid", "dan"])).await;
        world.check(name, || member.all(), &but(&["ann", "bob", "cid", "dan", "eve"])).await;
    }
    world.members["bob"].all().join("club").unwrap();
    eventually("the others joined", || {
        world.members.values().filter(|member| is_in(member, "club")).count() == 4
    })
    .await;
    assert!(!is_in(&world.members["bob"], "club"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn orders_reach_members_anywhere() {
    let world = World::new(&Setup::new("orders")).await;
    let (ns, people) = (&world.handles[0], &world.members);
    let who = |room: &str| -> Vec<&str> {
        people.iter().filter(|(_, member)| is_in(member, room)).map(|(name, _)| *name).collect()
    };
    assert_eq!(ns.to("nobody").join("x").unwrap().targeted, 0);
    assert_eq!(ns.to("r").join([""; 0]).unwrap().targeted, 0, "nothing is ordered");
    let receipt = ns.to("quiet").join("one").unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (1, 1), "{receipt:?}");
    let receipt = ns.to(["r", "s"]).except("quiet").join(["x", "y"]).unwrap();
    assert_eq!((receipt.targeted, receipt.queued), (2, 2), "superset: the excepted are known where they are");
    assert!(is_in(&people["ann"], "x") && is_in(&people["ann"], "y"), "here it is done at once");
    eventually("all have joined", || {
        who("one") == ["dan"] && who("x") == ["ann", "bob", "cid"] && who("y") == ["ann", "bob", "cid"]
    })
    .await;
    // Others than this node learn of it, too.
    for handle in &world.handles {
        until("the room is known", async || *handle.room_size("x").await.unwrap() == 3).await;
    }

    ns.all().local().leave("x").unwrap();
    assert_eq!(who("x"), ["bob", "cid"]);
    ns.to("x").leave(["x", "s"]).unwrap();
    // One room after the other, so neither alone says that the order is done.
    eventually("they left", || who("x").is_empty() && who("s") == ["ann"]).await;
    assert_eq!(who("y"), ["ann", "bob", "cid"]);
    assert_eq!(people["cid"].rooms().len(), 2, "t and y stay");

    let long = "x".repeat(600);
    assert!(matches!(ns.to("r").join(&long), Err(EmitError::Id(_))));
    assert!(matches!(ns.to("r").join(vec!["x"; 1025]), Err(EmitError::TooManyRooms { got: 1025, .. })));
    assert!(matches!(ns.to(&long).count().await, Err(AskError::Selection(EmitError::Id(_)))));
    assert!(matches!(ns.all().except(&long).disconnect(), Err(EmitError::Id(_))));
}

#[derive(Default)]
struct Told {
    recorder: Recorder,
    disconnected: AtomicUsize,
}

struct Teller(Arc<Told>);

impl Sink for Teller {
    fn deliver(&self, message: Bytes) {
        self.0.recorder.deliver(message);
    }

    fn disconnected(&self) {
        self.0.disconnected.fetch_add(1, Ordering::SeqCst);
        panic!("what a sink does is its own matter");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_disconnected_gets_what_came_before_and_nothing_after() {
    const NUMBERS: u64 = 2_000;
    let setup = Setup::new("disconnect").config(|config| config.interest.linger_ms = 0);
    let nodes = setup.formed(2).await;
    let handles = open(&nodes);
    let told: Vec<Arc<Told>> = (0..3).map(|_| Arc::default()).collect();
    let members: Vec<Member> = [0, 1, 1]
        .into_iter()
        .zip(&told)
        .map(|(at, told)| handles[at].connect(Teller(Arc::clone(told))))
        .collect();
    members[..2].iter().for_each(|member| member.join("out").unwrap());
    members.iter().for_each(|member| member.join("r").unwrap());
    until("all are known", async || *handles[0].room_size("r").await.unwrap() == 3).await;
    until("who goes is known", async || *handles[0].room_size("out").await.unwrap() == 2).await;

    for number in 1..=NUMBERS {
        handles[0].to("r").emit(stamp("zero", number)).unwrap();
    }
    handles[0].to("out").disconnect().unwrap();
    assert!(!members[0].is_connected(), "here it is done at once");
    handles[0].to("r").emit(stamp("zero", NUMBERS + 1)).unwrap();
    handles[0].all().emit(stamp("zero", NUMBERS + 2)).unwrap();
    eventually("who stays has everything", || told[2].recorder.has("zero", NUMBERS + 2)).await;
    told[2].recorder.check_all("zero", NUMBERS + 2);
    for at in [0, 1] {
        told[at].recorder.check_all("zero", NUMBERS);
        assert_eq!(told[at].recorder.count() as u64, NUMBERS, "member {at}");
        assert_eq!(told[at].disconnected.load(Ordering::SeqCst), 1);
        // What is left has no effect.
        members[at].join("again").unwrap();
        members[at].leave("r");
        assert!(members[at].rooms().is_empty() && !members[at].is_connected());
    }
    assert_eq!(told[2].disconnected.load(Ordering::SeqCst), 0);
    for handle in &handles {
        until("two are gone", async || *handle.sockets_count().await.unwrap() == 1).await;
        assert_eq!(*handle.rooms().await.unwrap(), [("r".to_owned(), 1)]);
    }
    drop(members);
    assert_eq!(told[2].disconnected.load(Ordering::SeqCst), 0, "its own drop is no news");
    eventually("nobody is left", || handles[0].all().emit(stamp("zero", NUMBERS + 3)).unwrap().targeted == 0)
        .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_member_elsewhere_costs_one_frame_to_its_node() {
    let world = World::new(&Setup::new("single")).await;
    let ns = &world.handles[0];
    let (node, bob) = (world.nodes[1].id().clone(), world.members["bob"].id());
    let sent = || -> BTreeMap<String, u64> {
        world.nodes[0].report().links.into_iter().map(|link| (link.peer, link.frames_sent)).collect()
    };
    let costs = |before: BTreeMap<String, u64>| -> Vec<u64> {
        sent().into_iter().map(|(peer, frames)| frames - before[&peer]).collect()
    };
    let recorder = Recorder::new();
    let gil = world.handles[1].connect(recorder.clone());
    let before = sent();
    let receipt = ns.member(&node, gil.id()).emit(stamp("zero", 1)).unwrap();
    assert_eq!((receipt.targeted, receipt.queued, costs(before)), (1, 1, vec![1, 0]));
    ns.member(&node, gil.id()).emit_wait(stamp("zero", 2)).await.unwrap();
    eventually("both are there", || recorder.has("zero", 2)).await;
    recorder.check_all("zero", 2);

    let before = sent();
    assert_eq!(all(&mut ns.member(&node, bob).emit_with_ack("who?", LONG).unwrap()).await.len(), 1);
    assert_eq!(ns.member(&node, bob).rooms().await.unwrap().value, ["r"]);
    assert_eq!(costs(before), [2, 0]);
    assert_eq!(*ns.member(&node, bob).except("r").count().await.unwrap(), 0);
    assert_eq!(*ns.member(&node, bob).local().count().await.unwrap(), 0);
    ns.member(&node, bob).join("alone").unwrap();
    ns.member(&node, gil.id()).disconnect().unwrap();
    eventually("it is done", || is_in(&world.members["bob"], "alone") && !gil.is_connected()).await;
    assert_eq!(*ns.member(&node, gil.id()).count().await.unwrap(), 0, "it is nobody now");
    assert!(world.members.iter().all(|(name, member)| *name == "bob" || !is_in(member, "alone")));

    let stranger = NodeId::new("single-nobody").unwrap();
    let receipt = ns.member(&stranger, bob).emit("x").unwrap();
    assert_eq!((receipt.targeted, receipt.dropped), (1, vec![(stranger.clone(), DropReason::PeerGone)]));
    let asked = ns.member(&stranger, bob).sockets().await.unwrap();
    assert_eq!(
        (asked.len(), asked.missing[0].reason, &asked.missing[0].node),
        (0, MissingReason::Left, &stranger)
    );
}

/// Contract 3: what was ordered before is done when the question comes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_question_sees_the_orders_before_it() {
    let world = World::new(&Setup::new("sequence")).await;
    let ns = &world.handles[0];
    for round in 0..200 {
        ns.to("r").join("temporary").unwrap();
        assert!(ns.to("r").rooms().await.unwrap().contains(&"temporary".to_owned()), "round {round}");
        ns.to("r").leave("temporary").unwrap();
        assert!(!ns.to("r").rooms().await.unwrap().contains(&"temporary".to_owned()), "round {round}");
        assert_eq!(*ns.room_size("temporary").await.unwrap(), 0, "round {round}");
        assert!(ns.rooms().await.unwrap().iter().all(|(room, _)| room != "temporary"), "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_without_the_namespace_and_nodes_that_join_cost_nothing() {
    let setup = Setup::new("joining");
    let seats = [0, 1, 2].map(|at| setup.seat(at));
    let seeds = [seats[0].addr()];
    let (first, second) = (setup.start_at(&seats[0], seeds).await, setup.start_at(&seats[1], seeds).await);
    let nodes = [first, second];
    formed(&nodes).await;
    let ns = nodes[0].namespace("/chat").unwrap();
    let _here = ns.connect_with_ack(|_, ack| ack.send("here"));
    // The second node does not have it.
    let answers = async || {
        let count = ns.sockets_count().await.unwrap();
        assert_eq!(count.missing, []);
        let mut acks = ns.all().emit_with_ack("x", LONG).unwrap();
        let given = all(&mut acks).await;
        assert_eq!(acks.missing(), []);
        (*count, given.len())
    };
    assert_eq!(answers().await, (1, 1));
    let third = setup.start_at(&seats[2], seeds).await;
    let there = third.namespace("/chat").unwrap();
    let _there = there.connect_with_ack(|_, ack| ack.send("there"));
    until("the new one answers", async || {
        let answers = answers().await;
        assert!((1..=2).contains(&answers.0) && (1..=2).contains(&answers.1), "{answers:?}");
        answers == (2, 2)
    })
    .await;
}

/// Lists that take many frames.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn long_lists_come_whole() {
    const MEMBERS: usize = 3_000;
    let nodes = Setup::new("lists").formed(2).await;
    let handles = open(&nodes);
    let members: Vec<Member> = (0..2 * MEMBERS)
        .map(|index| {
            let member = handles[index % 2].connect(|_| {});
            member.set_data(vec![b'd'; 200]).unwrap();
            member.join(format!("a room with a long name, number {}", index / 2)).unwrap();
            member
        })
        .collect();
    until("all are known", async || *handles[0].sockets_count().await.unwrap() == 2 * MEMBERS as u64).await;
    let sockets = handles[0].all().sockets().await.unwrap();
    assert_eq!((sockets.len(), &sockets.missing[..]), (2 * MEMBERS, &[][..]));
    let different: BTreeSet<_> = sockets.iter().map(|socket| (&socket.node, &socket.id)).collect();
    assert_eq!(different.len(), 2 * MEMBERS);
    assert!(sockets.iter().all(|socket| socket.data.len() == 200 && socket.rooms.len() == 1));
    let rooms = handles[1].rooms().await.unwrap();
    assert!(rooms.len() == MEMBERS && rooms.iter().all(|(_, members)| *members == 2));
    assert_eq!(handles[1].all().rooms().await.unwrap().len(), MEMBERS);
    drop(members);
}

fn open(nodes: &[Live]) -> Vec<Namespace> {
    nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect()
}

fn own(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| String::from(*name)).collect()
}

fn is_in(member: &Member, room: &str) -> bool {
    member.rooms().iter().any(|joined| &**joined == room)
}

/// Every acknowledgement, by the node and what was given (the number of the member where that is no name).
async fn all(acks: &mut Acks) -> BTreeMap<(String, String), (NodeId, Result<Bytes, AckError>)> {
    let mut came = BTreeMap::new();
    while let Some(ack) = soon("an acknowledgement or the end", acks.next()).await {
        let name = match &ack.result {
            Ok(name) if PEOPLE.iter().any(|person| person.1.as_bytes() == name) => {
                String::from_utf8(name.to_vec()).unwrap()
            }
            _ => ack.member.to_string(),
        };
        let before = came.insert((ack.node.to_string(), name), (ack.node, ack.result));
        assert_eq!(before, None, "twice");
    }
    came
}

/// Waits until a question is answered as it should be.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let holds = async {
        while !condition().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(what, holds).await;
}

async fn sizes_are(handle: &Namespace, expected: &[(&str, u64)]) {
    let expected: Vec<(String, u64)> =
        expected.iter().map(|(room, size)| (String::from(*room), *size)).collect();
    until("the rooms are known", async || *handle.rooms().await.unwrap() == expected).await;
    for (room, size) in &expected {
        until("the room is known", async || *handle.room_size(room).await.unwrap() == *size).await;
    }
}
