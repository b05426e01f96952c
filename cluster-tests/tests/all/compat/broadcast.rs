//! Broadcasts: who gets them, and who acknowledges.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cluster_tests::eventually;
use cluster_tests::wait::soon;
use roomcast::socketioxide::{Adapter, with_answers};
use socketioxide::AckError;
use socketioxide::extract::SocketRef;
use socketioxide::socket::Sid;

use super::super::operations::{Acks, acked, collect};
use super::super::sockets::{ACKED, ASKED};
use super::{Cluster, Operators, SELECTIONS, at_once};

/// Far beyond the deadline of `soon`.
const NEVER: Duration = Duration::from_secs(600);

/// What the socket at seat 1, in the lobby and in the quiet room, sends to, and the seats that get it.
type Send = fn(&SocketRef<Adapter>) -> Operators;
const FROM_A_SOCKET: [(&str, Send, &[usize]); 9] = [
    ("broadcast", |socket| socket.broadcast(), &[0, 2, 3, 4, 5, 6, 7]),
    ("to a room of its own", |socket| socket.to("lobby"), &[0, 3, 4]),
    ("within a room of its own", |socket| socket.within("lobby"), &[0, 1, 3, 4]),
    ("to another room", |socket| socket.to("alone"), &[6]),
    ("to two rooms", |socket| socket.to(["lobby", "quiet"]), &[0, 3, 4, 5]),
    ("except", |socket| socket.except("lobby"), &[2, 5, 6, 7]),
    ("to a room except another", |socket| socket.to("lobby").except("quiet"), &[0, 3]),
    ("broadcast here", |socket| socket.broadcast().local(), &[0, 2]),
    ("to nobody", |socket| socket.to("nobody"), &[]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_selected_hears_it_once_and_nobody_else() {
    Cluster::each("compat-said", async |cluster| {
        for (what, select, expected) in SELECTIONS {
            for server in 0..3 {
                let heard = cluster.emit(server, select(cluster.io(server))).await;
                assert_eq!(heard, expected, "{what}, from server {server}");
            }
        }
        let before = cluster.frames();
        cluster.io(0).to("nobody").emit("said", "nothing").await.unwrap();
        assert_eq!(
            cluster.frames() == before,
            cluster.exact,
            "an exact namespace stays exact, a flood one floods"
        );
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_is_left_out_unless_it_is_within() {
    Cluster::each("compat-sender", async |cluster| {
        let socket = cluster.socket(1);
        for (what, send, expected) in FROM_A_SOCKET {
            assert_eq!(cluster.emit(0, send(&socket)).await, expected, "{what}");
        }
        let word = cluster.word();
        socket.emit("said", &word).unwrap();
        assert_eq!(cluster.hear(0, &word).await, [1]);
        // Of another server it is the same.
        let there = cluster.socket(4);
        assert_eq!(cluster.emit(1, there.to("lobby")).await, [0, 1, 3]);
        assert_eq!(cluster.emit(1, there.within("quiet")).await, [1, 4, 5]);
        assert_eq!(cluster.emit(1, there.broadcast().except("lobby")).await, [2, 5, 6, 7]);
    })
    .await;
}

/// Clients in this process have no transport, which is what volatile messages go to at once or not at all: those that
/// arrive are seen in `operations_js.rs`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_volatile_is_queued_for_nobody() {
    Cluster::each("compat-volatile", async |cluster| {
        let (before, mut words) = (cluster.frames(), Vec::new());
        for (_, select, _) in SELECTIONS {
            let word = cluster.word();
            at_once(select(cluster.io(0)).volatile().emit("said", &word)).unwrap();
            words.push(word);
        }
        at_once(cluster.socket(1).broadcast().volatile().emit("said", &words[0])).unwrap();
        assert_eq!(cluster.frames(), before, "no frame is counted, numbered or kept");
        cluster.hear(0, &words[0]).await;
        assert!(words.iter().all(|word| cluster.heard(word).is_empty()));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_who_are_selected_acknowledge_once() {
    Cluster::each("compat-acks", async |cluster| {
        for (number, (what, select, expected)) in SELECTIONS.into_iter().enumerate() {
            let server = number % 3;
            // Without anybody, and with all, it ends long before the timeout.
            let asked = acked(select(cluster.io(server)).timeout(NEVER));
            let (sids, answers) = soon(format!("the end of {what}"), asked).await;
            assert_eq!(sids, cluster.sids(expected), "{what}, from server {server}");
            assert!(answers.is_complete(), "{what}: {answers:?}");
        }
        let socket = cluster.socket(1);
        for (what, send, expected) in FROM_A_SOCKET {
            let asked = acked(send(&socket).timeout(NEVER));
            let (sids, answers) = soon(format!("the end of {what}"), asked).await;
            assert_eq!(sids, cluster.sids(expected), "{what}");
            assert!(answers.is_complete(), "{what}: {answers:?}");
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_does_not_acknowledge_times_out_alone() {
    Cluster::in_turns("compat-silent", async |cluster| {
        // One of this server, then one of another.
        for silent in [0, 4] {
            let client = cluster.client(silent);
            client.answers.store(false, Ordering::Relaxed);
            let operator = cluster.io(0).to(["lobby", "quiet"]).timeout(Duration::from_millis(150));
            let (acks, answers) = with_answers(operator.emit_with_ack("ask", &ASKED)).await;
            let acks: Acks = acks.unwrap();
            let acks = soon("the timeout", collect(acks)).await;
            let sids: BTreeSet<Sid> = acks.iter().map(|(sid, _)| *sid).collect();
            assert_eq!((sids, acks.len()), (cluster.sids(&[0, 1, 3, 4, 5]), 5));
            for (sid, ack) in &acks {
                match ack {
                    Ok(ack) => assert!(*ack == ACKED && *sid != client.sid),
                    Err(error) => {
                        assert!(matches!(error, AckError::Timeout) && *sid == client.sid, "{error:?}")
                    }
                }
            }
            assert!(answers.is_complete(), "its node has answered for it: {answers:?}");
            client.answers.store(true, Ordering::Relaxed);
        }
        let (sids, _) = acked(cluster.io(0).to(["lobby", "quiet"])).await;
        assert_eq!(sids, cluster.sids(&[0, 1, 3, 4, 5]));
        // A client that goes while it is asked is not waited for.
        let client = cluster.client(6);
        client.answers.store(false, Ordering::Relaxed);
        let operator = cluster.io(0).to("alone").timeout(Duration::from_millis(150));
        let acks: Acks = operator.emit_with_ack("ask", &ASKED).await.unwrap();
        cluster.io(0).to("alone").disconnect().await.unwrap();
        eventually("the client is gone", || cluster.is_gone(6)).await;
        let acks = soon("the end", collect(acks)).await;
        assert!(matches!(&acks[..], [(sid, Err(_))] if *sid == client.sid), "{acks:?}");
    })
    .await;
}
