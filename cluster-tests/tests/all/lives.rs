//! Nodes restart, die, leave, and take the address of another.

use std::time::Duration;

use cluster_tests::cluster::{event, formed};
use cluster_tests::gate::Gate;
use cluster_tests::{Recorder, Seat, Setup, eventually, probe, stamp};
use roomcast::{Event, Member, Namespace};

/// Links that only an event ends, never a timeout.
fn patient(name: &str) -> Setup {
    Setup::new(name).config(|config| {
        config.quic.idle_timeout = Duration::from_secs(600);
        config.link.silence_limit = Duration::from_secs(600);
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
    let setup = patient("reuse");
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
    // The detector says that the old node is gone, and its link, which stands by its long timeout, does not help.
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
