//! Peers that have the secret and misuse it: their link is closed with the reason, and nothing else happens. What takes time or
//! many of something is in `insiders.rs`.

use std::ops::Range;
use std::time::Duration;

use cluster_tests::cluster::formed;
use cluster_tests::logs::logged;
use cluster_tests::raw::{broadcast, frame, read};
use cluster_tests::{Live, RawLink, RawPeer, Recorder, Setup, eventually, probe, stamp};
use roomcast::core::frame::{
    BroadcastHead, Head, InterestHead, InterestPart, LENGTH_BYTES, Resume, WireMode,
};
use roomcast::{ClusterSecret, Config, Member, Namespace};
use smallvec::smallvec;

/// What a node closes a link with when the peer broke the protocol.
pub(crate) const VIOLATION: u64 = 3;
/// What a node closes a connection with that it does not want.
pub(crate) const REFUSED: u64 = 4;

/// Two honest nodes with messages between them, and a place to attack.
pub(crate) struct Scene {
    pub(crate) setup: Setup,
    pub(crate) nodes: Vec<Live>,
    pub(crate) here: Namespace,
    pub(crate) recorder: Recorder,
    pub(crate) number: u64,
    attacks: usize,
    _member: Member,
}

impl Scene {
    pub(crate) async fn new(name: &str) -> Self {
        Self::with(name, |_| {}).await
    }

    pub(crate) async fn with(name: &str, change: impl FnOnce(&mut Config)) -> Self {
        let setup = Setup::new(name).config(|config| {
            config.link.max_rooms_per_peer = 1_000;
            config.link.max_namespaces_per_peer = 100;
            config.link.max_frame_bytes = 1 << 20;
            config.link.handshake_timeout = Duration::from_secs(2);
            change(config);
        });
        let nodes = setup.formed(2).await;
        let here = nodes[0].namespace("/chat").unwrap();
        let recorder = Recorder::new();
        let _member = nodes[1].namespace("/chat").unwrap().connect(recorder.clone());
        let mut scene = Self { setup, nodes, here, recorder, number: 0, attacks: 0, _member };
        let targeted = || scene.here.all().emit(probe()).unwrap().targeted == 1;
        eventually("the member is known", targeted).await;
        scene.unharmed().await;
        scene
    }

    pub(crate) fn peer(&mut self) -> RawPeer {
        self.attacks += 1;
        RawPeer::new(&self.setup, 100 + self.attacks)
    }

    /// An attack on a link that is up: it must be closed as a violation, for that reason.
    pub(crate) async fn attack(&mut self, reason: &str, bytes: &[u8]) {
        let peer = self.peer();
        let mut link = peer.link(self.nodes[0].addr(), "/elsewhere").await;
        eventually("the link is up", || self.nodes[0].is_linked_to(&peer.id)).await;
        link.say_bytes(bytes).await;
        self.caught(&peer, &link, reason).await;
    }

    pub(crate) async fn caught(&mut self, peer: &RawPeer, link: &RawLink, reason: &str) {
        let (code, text) = link.closed().await;
        assert!(code == VIOLATION && text.contains(reason), "closed with {code} {text:?}, not {reason:?}");
        let name = self.nodes[0].name().to_owned();
        logged(&name, &["link down", &format!("peer={}", peer.id), reason]).await;
        self.unharmed().await;
    }

    /// The link of the honest nodes was not touched and messages flow.
    pub(crate) async fn unharmed(&mut self) {
        self.number += 1;
        self.here.all().emit(stamp("zero", self.number)).unwrap();
        eventually("messages flow", || self.recorder.has("zero", self.number)).await;
        assert_eq!(self.recorder.numbers("zero"), (1..=self.number).collect::<Vec<_>>());
        assert!(self.nodes[0].is_live());
        assert_eq!(self.nodes[0].link(self.nodes[1].name()).unwrap().links, 1);
    }
}

fn raw_frame(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_le_bytes(), bytes].concat()
}

fn interest(part: InterestPart, version: u64, keys: Range<u64>) -> Vec<u8> {
    let added = u32::try_from(keys.end - keys.start).unwrap();
    let head = InterestHead { version, part, ns: "/elsewhere", number: 0, mode: WireMode::Exact, added };
    let payload: Vec<u8> = keys.flat_map(u64::to_le_bytes).collect();
    frame(&Head::Interest(head), &payload).to_vec()
}

/// A delta that adds a namespace.
fn namespace(version: u64, ns: &str) -> Vec<u8> {
    let (part, mode) = (InterestPart::DeltaEnd, WireMode::Flood);
    frame(&Head::Interest(InterestHead { version, part, ns, number: 0, mode, added: 0 }), &[]).to_vec()
}

fn rooms(number: u32, added: u32, keys: Range<u64>) -> Vec<u8> {
    let payload: Vec<u8> = keys.flat_map(u64::to_le_bytes).collect();
    frame(&Head::Rooms { number, added }, &payload).to_vec()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_that_are_none() {
    let mut scene = Scene::new("garbage").await;
    scene.attack("frame of 4294967295 bytes, the limit is 1048576", &[0xff; 4]).await;
    scene.attack("frame of 1048577 bytes", &(1_048_577u32).to_le_bytes()).await;
    scene.attack("unreadable frame head", &raw_frame(&[0xff; 10])).await;
    scene.attack("unreadable frame head", &raw_frame(&[])).await;
    let whole = frame(&broadcast("/chat"), b"x");
    scene.attack("unreadable frame head", &raw_frame(&whole[LENGTH_BYTES..LENGTH_BYTES + 5])).await;
    assert_eq!(scene.nodes[0].report().counters.violations, 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_over_a_limit() {
    let mut scene = Scene::new("limits").await;
    let long = "x".repeat(513);
    let with = |change: &dyn Fn(&mut BroadcastHead<'_>)| {
        let mut head = broadcast("/chat");
        if let Head::Broadcast(broadcast) = &mut head {
            change(broadcast);
        }
        frame(&head, b"payload").to_vec()
    };
    let many: Vec<String> = (0..1025).map(|index| index.to_string()).collect();
    let rooms = {
        let mut head = broadcast("/chat");
        if let Head::Broadcast(broadcast) = &mut head {
            broadcast.rooms = many.iter().map(String::as_str).collect();
        }
        frame(&head, b"payload").to_vec()
    };
    let name = {
        let mut head = broadcast("/chat");
        if let Head::Broadcast(broadcast) = &mut head {
            broadcast.rooms = smallvec![long.as_str()];
        }
        frame(&head, b"payload").to_vec()
    };
    scene.attack("rooms of 1025, the limit is 1024", &rooms).await;
    scene.attack("room name of 513, the limit is 512", &name).await;
    scene.attack("namespace of 513, the limit is 255", &frame(&broadcast(&long), b"")).await;
    scene.attack("attachments are longer", &with(&|b| b.attachments = smallvec![u32::MAX, u32::MAX])).await;
    let shorter = [with(&|b| b.attachments = smallvec![7]), frame(&Head::Again, b"payloa").to_vec()].concat();
    scene.attack("attachments are longer", &shorter).await;
    assert_eq!(scene.recorder.count_from("zero") as u64, scene.number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_much_interest() {
    let mut scene = Scene::new("greedy").await;
    scene.attack("a delta of 1001 rooms", &interest(InterestPart::DeltaEnd, 2, 0..1_001)).await;
    let parts = [interest(InterestPart::Delta, 2, 0..600), interest(InterestPart::Delta, 2, 600..1_200)];
    scene.attack("a delta of 1200 rooms", &parts.concat()).await;
    let deltas =
        [interest(InterestPart::DeltaEnd, 2, 0..600), interest(InterestPart::DeltaEnd, 3, 600..1_200)];
    scene.attack("too much", &deltas.concat()).await;
    let parts =
        [interest(InterestPart::Snapshot, 2, 0..600), interest(InterestPart::Snapshot, 2, 600..1_200)];
    scene.attack("too much", &parts.concat()).await;
    let parts = [interest(InterestPart::Snapshot, 2, 0..1), interest(InterestPart::SnapshotEnd, 3, 1..2)];
    scene.attack("a snapshot of several versions", &parts.concat()).await;
    // Parts without keys cost memory as well, and a delta may have any number of them.
    let endless: Vec<u8> = interest(InterestPart::Delta, 2, 0..0).repeat(1_000);
    scene.attack("in 101 parts", &endless).await;
    let namespaces: Vec<u8> = (0..200).flat_map(|index| namespace(2 + index, &format!("/{index}"))).collect();
    scene.attack("too much", &namespaces).await;
    let mut short = interest(InterestPart::DeltaEnd, 2, 0..4);
    short.truncate(short.len() - 8);
    let length = u32::try_from(short.len() - LENGTH_BYTES).unwrap();
    short[..LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    scene.attack("interest keys", &short).await;
    scene.attack("a delta of 1001 rooms", &rooms(1, 1_001, 0..1_001)).await;
    scene.attack("too much", &[rooms(1, 600, 0..600), rooms(1, 600, 600..1_200)].concat()).await;
    scene.attack("interest keys", &rooms(1, 5, 0..4)).await;
    // Numbers cost memory, too.
    let numbered = |number| {
        let (part, mode, ns) = (InterestPart::DeltaEnd, WireMode::Flood, "/elsewhere");
        let version = u64::from(number);
        frame(&Head::Interest(InterestHead { version, part, ns, number, mode, added: 0 }), &[]).to_vec()
    };
    let numbers: Vec<u8> = (2..200).flat_map(numbered).collect();
    scene.attack("101 numbered namespaces, the limit is 100", &numbers).await;
    // Just below the limit is fine.
    let peer = scene.peer();
    let mut link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
    link.say_bytes(&interest(InterestPart::DeltaEnd, 2, 0..900)).await;
    eventually("its rooms are held", || {
        scene.nodes[0].link(&peer.id).is_some_and(|link| link.interest_version_held == 2 && link.rooms == 900)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn frames_out_of_turn() {
    let mut scene = Scene::new("turns").await;
    let resume = Head::Resume(Resume { epoch: 7, received: None });
    scene.attack("a second resume", &frame(&resume, b"")).await;
    scene.attack("an unexpected start", &frame(&Head::Start { first: 1 }, b"")).await;
    scene.attack("a repeated head before any broadcast", &frame(&Head::Again, b"x")).await;
    let received = frame(&Head::Received { seq: 0, interest: 0 }, b"");
    let again = [received, frame(&Head::Again, b"x")].concat();
    scene.attack("a repeated head before any broadcast", &again).await;
    scene.attack("unknown number 9", &rooms(9, 1, 0..1)).await;
    let (delta, snapshot) = (InterestPart::Delta, InterestPart::Snapshot);
    scene.attack("within another update", &[interest(delta, 2, 0..1), rooms(1, 1, 0..1)].concat()).await;
    scene.attack("within another update", &[interest(snapshot, 2, 0..1), rooms(1, 1, 0..1)].concat()).await;
    let refused = Head::Refused(roomcast::core::frame::Refusal {
        kind: roomcast::core::frame::RefusalKind::Other,
        text: "no",
    });
    scene.attack("a hello in the middle", &frame(&refused, b"")).await;

    for (reason, bytes) in [
        ("the second frame is not a resume", frame(&broadcast("/chat"), b"x").to_vec()),
        ("before the start", [frame(&resume, b""), frame(&broadcast("/chat"), b"x")].concat()),
        ("before the start", [frame(&resume, b""), frame(&Head::Again, b"x")].concat()),
        ("before a snapshot", [&frame(&resume, b""), &rooms(1, 1, 0..1)[..]].concat()),
        ("an unexpected start", [frame(&resume, b""), frame(&Head::Start { first: 0 }, b"")].concat()),
        ("first frame number", [frame(&resume, b""), frame(&Head::Start { first: u64::MAX }, b"")].concat()),
    ] {
        let peer = scene.peer();
        let mut link = peer.open(scene.nodes[0].addr()).await;
        peer.hello(&mut link).await;
        link.say_bytes(&bytes).await;
        scene.caught(&peer, &link, reason).await;
    }
    assert_eq!(scene.recorder.count_from("zero") as u64, scene.number);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_datagrams_that_nobody_wants() {
    let mut scene = Scene::new("streams").await;
    let volatile_hello = frame(&Head::Start { first: 1 }, b"");
    let volatile_again = [frame(&broadcast("/chat"), b"x"), frame(&Head::Again, b"x")].concat();
    let huge = [vec![1u8], vec![0u8; 100 << 10]].concat();
    for (reason, bytes) in [
        ("a stream of unknown kind 9", vec![9u8, 1, 2, 3]),
        ("a short stream of more than", huge),
        ("a volatile frame that is no broadcast", [&[2u8][..], &volatile_hello].concat()),
        ("a volatile frame that is no broadcast", [&[2u8][..], &volatile_again].concat()),
    ] {
        let peer = scene.peer();
        let link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
        let mut stream = link.conn.open_uni().await.unwrap();
        let _ = stream.write_all(&bytes).await;
        let _ = stream.finish();
        scene.caught(&peer, &link, reason).await;
    }
    let peer = scene.peer();
    let link = peer.link(scene.nodes[0].addr(), "/elsewhere").await;
    link.conn.send_datagram(raw_frame(&[0xff; 10]).into()).unwrap();
    scene.caught(&peer, &link, "unreadable frame head").await;
}

/// Gossip that makes no sense is counted and ignored: chitchat is not a reason to lose a link.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gossip_that_makes_no_sense_is_ignored() {
    let mut scene = Scene::new("rumours").await;
    let peer = scene.peer();
    let mut link = peer.link(scene.nodes[0].addr(), "/chat").await;
    for length in [0usize, 1, 4, 100, 60_000] {
        let mut stream = link.conn.open_uni().await.unwrap();
        stream.write_all(&[1]).await.unwrap();
        stream.write_all(&vec![0x53; length]).await.unwrap();
        stream.finish().unwrap();
        stream.stopped().await.unwrap();
    }
    scene.here.all().emit(stamp("zero", scene.number + 1)).unwrap();
    scene.number += 1;
    let answer = loop {
        let frame = link.next().await.expect("the link stands");
        if matches!(read(&frame), Head::Broadcast(_)) {
            break frame;
        }
    };
    assert!(!answer.is_empty());
    scene.unharmed().await;
    formed_without(&scene.nodes, &peer.id).await;
}

async fn formed_without(nodes: &[Live], stranger: &str) {
    eventually("the honest nodes are live to each other", || {
        nodes.iter().all(|node| {
            let mut others = nodes.iter().filter(|other| other.name() != node.name());
            others.all(|other| node.member(other.name()).is_some_and(|member| member.state == "live"))
        })
    })
    .await;
    assert!(nodes[1].member(stranger).is_none(), "who does not gossip is known only to whom it links");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_greetings() {
    let mut scene = Scene::new("greetings").await;
    let node = scene.nodes[0].name().to_owned();
    let mut endless = u32::to_le_bytes(1 << 20).to_vec();
    endless.extend([0u8; 1000]);
    for (reason, bytes) in [
        ("the first frame is not a hello", frame(&broadcast("/chat"), b"x").to_vec()),
        ("the first frame is not a hello", frame(&Head::Received { seq: 1, interest: 1 }, b"").to_vec()),
        ("unreadable frame head", raw_frame(&[0x77; 40])),
        ("frame of 4294967295 bytes", vec![0xff; 4]),
        // As large as a frame may be, but no hello is.
        ("frame of 1048576 bytes", endless),
    ] {
        let peer = scene.peer();
        let mut link = peer.open(scene.nodes[0].addr()).await;
        link.say_bytes(&bytes).await;
        let answer = link.next().await.expect("the reason is sent before the connection is closed");
        let head = read(&answer);
        let Head::Refused(refusal) = head else { panic!("{head:?}") };
        assert!(refusal.text.contains(reason), "{refusal:?}");
        link.conn.close(0u32.into(), b"");
        logged(&node, &["incoming connection refused", reason]).await;
        scene.unharmed().await;
    }
    let mut peer = scene.peer();
    peer.id = "no such name!".into();
    let mut link = peer.open(scene.nodes[0].addr()).await;
    peer.hello(&mut link).await;
    let answer = link.next().await.expect("an answer");
    let head = read(&answer);
    assert!(matches!(&head, Head::Refused(refusal) if refusal.text.contains("as a node id")), "{head:?}");
    assert_eq!(scene.nodes[0].report().links.len(), 1, "no peer was made of any of them");
}

/// Peers that connect and say nothing, or stop in the middle of a hello, are let go in the end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hello_that_never_ends() {
    let mut scene = Scene::new("slow").await;
    let refused = scene.nodes[0].report().counters.refused;
    let peer = scene.peer();
    let silent = peer.connect(scene.nodes[0].addr()).await.unwrap();
    let mut link = peer.open(scene.nodes[0].addr()).await;
    link.say_bytes(&raw_frame(&[0u8; 200])[..100]).await;
    let (code, reason) = link.closed().await;
    assert!(code == REFUSED && reason.contains("too long"), "{code} {reason}");
    eventually("the silent one is gone", || silent.close_reason().is_some()).await;
    eventually("both are counted", || scene.nodes[0].report().counters.refused >= refused + 2).await;
    scene.unharmed().await;
}

/// Without the secret not a byte reaches a decoder: the handshake fails before the first stream.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_do_not_get_past_tls() {
    let mut scene = Scene::new("strangers").await;
    let secret = ClusterSecret::generate().unwrap();
    let peer = RawPeer::with_secret(&scene.setup, 100, &secret);
    let outcome = peer.connect(scene.nodes[0].addr()).await;
    // The side that dials checks the node first.
    assert!(outcome.is_err(), "{outcome:?}");
    logged(scene.nodes[0].name(), &["incoming connection refused", "another cluster secret"]).await;
    scene.unharmed().await;
    formed(&scene.nodes).await;
}
