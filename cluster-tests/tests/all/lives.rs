//! Nodes restart, die, leave, and take the address of another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use cluster_tests::chat::ChatCluster;
use cluster_tests::cluster::{event, formed};
use cluster_tests::gate::Gate;
use cluster_tests::harness::ground::Rule;
use cluster_tests::process::Process;
use cluster_tests::{Recorder, Seat, Setup, eventually, probe, stamp};
use roomcast::{Event, Events, Member, Namespace};

/// Links that only an event ends, never a timeout.
fn patient(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_secs(600);
        config.link.silence_limit = Duration::from_secs(600);
        config.link.stall_limit = Duration::from_secs(600);
    })
}

/// Nodes that give each other up soon.
fn impatient(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_millis(1500);
        config.quic.keep_alive = Duration::from_millis(300);
        config.link.resume_window = Duration::from_secs(1);
        config.members.dead_linger_ms = 500;
        config.members.unheard_ms = 1_000;
        config.interest.linger_ms = 0;
    })
}

fn join(ns: &Namespace, room: &str) -> (Member, Recorder) {
    let recorder = Recorder::new();
    let member = ns.connect(recorder.clone());
    member.join(room).unwrap();
    (member, recorder)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_under_the_same_name_takes_over_at_once() {
    let setup = patient("restart");
    let mut nodes = setup.formed(3).await;
    let mut events = nodes[0].events();
    let old = nodes.remove(1);
    let (first, old_run) = (nodes[0].addr(), old.incarnation());
    // It crashes: nobody is told, and its links would stand for ten minutes.
    let addr = old.kill().await;
    assert!(nodes[0].is_linked_to("restart-1"), "nobody could know yet");

    // Back at its old address, as a process that a supervisor starts again.
    let seat = Seat { id: setup.id(1), gate: Gate::bind(addr).unwrap() };
    let new = setup.start_at(&seat, [first]).await;
    let restarted = |event: &Event| {
        matches!(event, Event::MemberRestarted { id, incarnation, .. }
            if *id == *new.id() && *incarnation == new.incarnation() && *incarnation > old_run)
    };
    event(&mut events, "of the restart", restarted).await;
    nodes.push(new);
    formed(&nodes).await;

    let here = nodes[0].namespace("/").unwrap();
    let (_member, recorder) = join(&nodes[2].namespace("/").unwrap(), "lobby");
    eventually("the new run gets messages", || {
        here.to("lobby").emit(stamp("hello", 1)).unwrap();
        recorder.count() > 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn restarts_one_after_the_other_at_other_addresses() {
    let setup = patient("again");
    let mut nodes = setup.formed(2).await;
    for _ in 0..5 {
        nodes.pop().unwrap().kill().await;
        let node = setup.start_at(&setup.seat(1), [nodes[0].addr()]).await;
        nodes.push(node);
        formed(&nodes).await;
        assert_eq!(nodes[0].link("again-1").unwrap().incarnation, nodes[1].incarnation().0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_another_node_has_now() {
    // A node that dies before gossip has heard of it twice is noticed by its link alone: that must not stand for ever.
    let setup = patient("reuse").config(|config| config.link.silence_limit = Duration::from_secs(15));
    let mut nodes = setup.formed(3).await;
    let gone = nodes.pop().unwrap();
    let gone_id = gone.name().to_owned();
    let (_other, stranger) = join(&nodes[1].namespace("/").unwrap(), "room");
    let addr = gone.kill().await;

    let seat = Seat { id: setup.id(7), gate: Gate::bind(addr).unwrap() };
    let newcomer = setup.start_at(&seat, [nodes[0].addr()]).await;
    let (_member, recorder) = join(&newcomer.namespace("/").unwrap(), "lobby");
    eventually("all are linked to the newcomer", || {
        nodes.iter().all(|node| node.is_linked_to(newcomer.name()) && newcomer.is_linked_to(node.name()))
    })
    .await;
    let here = nodes[0].namespace("/").unwrap();
    for number in 1..=20 {
        here.to("lobby").emit(stamp("zero", number)).unwrap();
    }
    eventually("the newcomer gets its messages", || recorder.has("zero", 20)).await;
    recorder.check_all("zero", 20);
    assert_eq!(stranger.count(), 0);
    // The detector says that the old node is gone, long before its link gives up, or else the link does.
    eventually("the old node is not live", || {
        nodes.iter().all(|node| node.member(&gone_id).is_none_or(|member| member.state != "live"))
    })
    .await;
    let member = nodes[0].member(newcomer.name()).unwrap();
    assert_eq!((member.state.as_str(), member.address), ("live", addr.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_dies_is_suspected_given_up_and_what_it_was_owed_is_counted() {
    let setup = impatient("dies");
    let mut nodes = setup.formed(3).await;
    let dead = nodes.pop().unwrap();
    let id = dead.id().clone();
    let (member, _recorder) = join(&dead.namespace("/").unwrap(), "lobby");
    let here = nodes[0].namespace("/").unwrap();
    eventually("the join is known", || here.to("lobby").emit(probe()).unwrap().targeted == 1).await;
    eventually("the probes are acknowledged", || {
        nodes[0].link(id.as_str()).is_some_and(|link| link.queue_frames == 0)
    })
    .await;

    let mut events = nodes[0].events();
    dead.kill().await;
    // Only now, so that nobody hears of the leave.
    drop(member);
    for number in 1..=10 {
        here.to("lobby").emit(stamp("late", number)).unwrap();
    }
    let of_dead = |event: &Event, wanted: roomcast::MemberState| matches!(event, Event::MemberState { id: of, state, .. } if *of == id && *state == wanted);
    event(&mut events, "suspect", |event| of_dead(event, roomcast::MemberState::Suspect)).await;
    event(&mut events, "dead", |event| of_dead(event, roomcast::MemberState::Dead)).await;
    let left = |event: &Event| matches!(event, Event::MemberLeft { id: of, .. } if *of == id);
    let gap = |event: &Event| matches!(event, Event::Gap { peer, frames: 10, outgoing: true } if *peer == id);
    let (mut has_left, mut has_gap) = (false, false);
    event(&mut events, "of the end and of the loss", |event| {
        has_left |= left(event);
        has_gap |= gap(event);
        has_left && has_gap
    })
    .await;
    formed(&nodes).await;
    assert_eq!(here.to("lobby").emit(stamp("after", 1)).unwrap().targeted, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_is_gone_for_the_others_at_once() {
    let setup = patient("stops");
    let mut nodes = setup.formed(3).await;
    let stopped = nodes.pop().unwrap();
    let mut events = nodes[0].events();
    stopped.stop().await;
    assert!(!stopped.is_live());
    event(
        &mut events,
        "link down",
        |event| matches!(event, Event::LinkDown { peer, .. } if peer == stopped.id()),
    )
    .await;
    eventually("nobody keeps anything for it", || {
        nodes.iter().all(|node| node.link(stopped.name()).is_none())
    })
    .await;
}

/// One side gives the other up while that one still remembers it: what was sent has arrived or is counted, twice over.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_side_forgot_and_the_other_did_not_is_not_lost_in_silence() {
    let forgets = impatient("forgets");
    let remembers = forgets.clone().config(|config| {
        config.link.resume_window = Duration::from_secs(600);
        config.members.dead_linger_ms = 600_000;
        config.members.unheard_ms = 600_000;
    });
    let seats = [forgets.seat(0), forgets.seat(1)];
    let first = forgets.start_at(&seats[0], []).await;
    let nodes = [first, remembers.start_at(&seats[1], [seats[0].addr()]).await];
    formed(&nodes).await;
    let handles = [0, 1].map(|at| nodes[at].namespace("/").unwrap());
    let members = [0, 1].map(|at| join(&handles[at], "room"));
    for handle in &handles {
        eventually("the joins are known", || handle.to("room").emit(probe()).unwrap().targeted == 1).await;
    }
    let counted = [0, 1].map(|at| count_losses(nodes[at].events()));
    let stop = Arc::new(AtomicBool::new(false));
    let senders = [("a", 0), ("b", 1)]
        .map(|(name, at)| tokio::spawn(flow(handles[at].clone(), name, Arc::clone(&stop))));
    for _ in 0..2 {
        let before = [members[1].1.count_from("a"), members[0].1.count_from("b")];
        let flows = || members[1].1.count_from("a") > before[0] && members[0].1.count_from("b") > before[1];
        eventually("messages flow", flows).await;
        nodes[1].gate.cut();
        eventually("one side has forgotten the other", || nodes[0].link("forgets-1").is_none()).await;
        assert!(nodes[1].link("forgets-0").is_some(), "this one remembers");
        nodes[1].gate.heal();
        formed(&nodes).await;
    }
    stop.store(true, Ordering::SeqCst);
    for (at, sender) in senders.into_iter().enumerate() {
        let sent = sender.await.unwrap();
        let (name, recorder) = (["a", "b"][at], &members[1 - at].1);
        let fence = sent.last().copied().unwrap_or_default() + 1;
        handles[at].to("room").emit(stamp(name, fence)).unwrap();
        eventually("what is sent now arrives", || recorder.has(name, fence)).await;
        recorder.check();
        let came = recorder.numbers(name);
        let missing = sent.iter().filter(|number| came.binary_search(number).is_err()).count() as u64;
        eventually(format!("{missing} lost from {name} are counted"), || {
            counted[at].load(Ordering::SeqCst) >= missing
        })
        .await;
    }
}

/// Emits numbered messages to `room` until told to stop; returns the numbers of those that were queued.
async fn flow(ns: Namespace, sender: &'static str, stop: Arc<AtomicBool>) -> Vec<u64> {
    let (mut number, mut queued) = (0, Vec::new());
    while !stop.load(Ordering::SeqCst) {
        number += 1;
        if ns.to("room").emit(stamp(sender, number)).unwrap().queued > 0 {
            queued.push(number);
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    queued
}

/// Adds up the frames that a node reports as lost on their way out.
fn count_losses(mut events: Events) -> Arc<AtomicU64> {
    let lost = Arc::new(AtomicU64::new(0));
    let sum = Arc::clone(&lost);
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let Event::Gap { frames, outgoing: true, .. } = event {
                sum.fetch_add(frames, Ordering::SeqCst);
            }
        }
    });
    lost
}

/// One peer that does not answer costs a node that leaves its patience, and the other peers nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_loses_nothing_for_who_is_there() {
    const MESSAGES: u64 = 500;
    let setup = patient("partly").config(|config| config.link.drain_timeout = Duration::from_secs(10));
    // The one that leaves acknowledges nothing of itself: only its goodbye says what it has applied.
    let quiet = setup.clone().config(|config| config.link.heartbeat = Duration::from_secs(600));
    let seat = setup.seat(0);
    let mut nodes = vec![quiet.start_at(&seat, []).await];
    for index in [1, 2] {
        nodes.push(setup.start_at(&setup.seat(index), [seat.addr()]).await);
    }
    formed(&nodes).await;
    let handles: Vec<Namespace> = nodes.iter().map(|node| node.namespace("/").unwrap()).collect();
    let (_there, there) = join(&handles[1], "lobby");
    let (_dead, _unheard) = join(&handles[2], "lobby");
    let (_back, back) = join(&handles[0], "back");
    eventually("the joins are known", || handles[0].to("lobby").emit(probe()).unwrap().targeted == 2).await;
    eventually("this one too", || handles[1].to("back").emit(probe()).unwrap().targeted == 1).await;

    let mut events = nodes[1].events();
    nodes[2].gate.cut();
    for number in 1..=MESSAGES {
        handles[0].to("lobby").emit(stamp("last", number)).unwrap();
        handles[1].to("back").emit(stamp("answer", number)).unwrap();
    }
    eventually("the answers are there", || back.has("answer", MESSAGES)).await;
    nodes[0].drain().await;
    loop {
        match events.recv().await.unwrap() {
            Event::Gap { peer, frames, .. } if peer == *nodes[0].id() => panic!("{frames} frames lost"),
            Event::MemberLeft { id, .. } if id == *nodes[0].id() => break,
            _ => {}
        }
    }
    there.check_all("last", MESSAGES);
    back.check_all("answer", MESSAGES);
    nodes[0].stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_clone_of_a_node_ends_it() {
    let setup = patient("dropped");
    let mut nodes = setup.formed(2).await;
    drop(nodes.pop());
    eventually("the other noticed", || nodes[0].report().links.is_empty()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_loses_nothing() {
    const MESSAGES: u64 = 2_000;
    let setup = patient("drain");
    let nodes = setup.formed(3).await;
    let mut recorders = Vec::new();
    for node in &nodes[1..] {
        recorders.push(join(&node.namespace("/").unwrap(), "lobby"));
    }
    let here = nodes[0].namespace("/").unwrap();
    eventually("both joins are known", || here.to("lobby").emit(probe()).unwrap().targeted == 2).await;
    // What the node itself got just before: the sender must not count it as lost.
    let got = join(&here, "back");
    let there = nodes[1].namespace("/").unwrap();
    eventually("the join is known", || there.to("back").emit(probe()).unwrap().targeted == 1).await;
    let mut events = nodes[1].events();
    for number in 1..=100 {
        there.to("back").emit(stamp("answer", number)).unwrap();
    }
    eventually("the answers are there", || got.1.count_from("answer") == 100).await;
    for number in 1..=MESSAGES {
        here.to("lobby").emit(stamp("last", number)).unwrap();
    }
    nodes[0].drain().await;
    assert!(nodes[0].is_draining() && !nodes[0].is_ready());
    loop {
        match events.recv().await.unwrap() {
            Event::Gap { frames, .. } => panic!("{frames} frames counted as lost"),
            Event::LinkDown { reason, .. } => assert_eq!(reason, "the peer left the cluster"),
            Event::MemberState { state: roomcast::MemberState::Suspect, .. } => {
                panic!("a goodbye was taken for a break")
            }
            Event::MemberLeft { .. } => break,
            _ => {}
        }
    }
    for (_, recorder) in &recorders {
        recorder.check_all("last", MESSAGES);
    }
    eventually("the others let it go", || {
        nodes[1..].iter().all(|node| {
            let state = node.member("drain-0").map(|member| member.state);
            node.link("drain-0").is_none() && state.is_none_or(|state| state != "live" && state != "suspect")
        })
    })
    .await;
    assert!(nodes[1].is_linked_to("drain-2"));
    let (gaps, kept): (u64, u64) = (
        nodes[0].report().links.iter().map(|link| link.gap_frames_sent).sum(),
        nodes[0].report().links.iter().map(|link| link.queue_frames).sum(),
    );
    assert_eq!((gaps, kept), (0, 0));
    nodes[0].drain().await;
    nodes[0].stop().await;
}

/// What others send while a node leaves is for members that have gone: nothing of it is counted as lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_leaves_after_its_members_is_owed_nothing() {
    let setup = patient("empty");
    let nodes = setup.formed(2).await;
    // Far above the pause between two messages: something is always under way.
    let delay = Duration::from_millis(30)..Duration::from_millis(31);
    nodes[1].gate.rule_to(nodes[0].addr(), Rule { delay, ..Rule::clear() });
    let here = nodes[0].namespace("/").unwrap();
    // It keeps the namespace, so that only the room goes, which would be wanted a while longer otherwise.
    let _stays = here.connect(Recorder::new());
    let (member, recorder) = join(&here, "room");
    let there = nodes[1].namespace("/").unwrap();
    eventually("the join is known", || there.to("room").emit(probe()).unwrap().targeted == 1).await;
    let mut events = nodes[1].events();
    let stop = Arc::new(AtomicBool::new(false));
    let flowing = tokio::spawn(flow(there, "there", Arc::clone(&stop)));
    eventually("messages come", || recorder.count_from("there") > 10).await;
    drop(member);
    nodes[0].drain().await;
    loop {
        match events.recv().await.unwrap() {
            // One emit can have looked up who wants it before and be queued after. Were the room wanted until the end, it
            // would be all that is under way: 30 ms of messages.
            Event::Gap { frames, .. } => assert!(frames <= 1, "{frames} frames counted as lost"),
            Event::MemberLeft { .. } => break,
            _ => {}
        }
    }
    stop.store(true, Ordering::SeqCst);
    flowing.await.unwrap();
    nodes[0].stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chat_whose_status_port_is_taken_announces_nothing_and_says_why_without_colours() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let (free, admin) = (std::net::SocketAddr::from(([127, 0, 0, 1], 0)), taken.local_addr().unwrap());
    let mut command = ChatCluster::new("common").command("a", [free, admin, free], &[]);
    command.env_remove("NO_COLOR");
    let mut chat = Process::spawn("chat", command);
    assert_eq!(chat.end().await.code(), Some(1));
    let said = chat.printed();
    let reason = format!("chat: failed to listen for the status on {admin} (--admin): ");
    assert!(said.starts_with(&reason) && said.lines().count() == 1, "{said}");

    let mut command = ChatCluster::new("common").command("a", [free; 3], &[]);
    command.env_remove("NO_COLOR");
    let chat = Process::spawn("chat", command);
    chat.line("ready ").await;
    chat.says(&["node started"]).await;
    assert!(!chat.printed().contains('\u{1b}'), "{}", chat.printed());
}
