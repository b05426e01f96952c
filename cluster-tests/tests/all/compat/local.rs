//! `.local()`: this server only, answered here and now, and no other node hears of it.

use bytes::Bytes;
use cluster_tests::wait::soon;
use socketioxide::socket::Sid;

use super::super::operations::{Acks, collect, fetched, rooms};
use super::super::sockets::{ACKED, ASKED};
use super::{Cluster, Operators, Select, at_once, names};

/// What server 0 selects of its own, and the seats.
const HERE: [(&str, Select, &[usize]); 5] = [
    ("all", |all| all.local(), &[0, 1, 2]),
    ("a room", |all| all.to("lobby").local(), &[0, 1]),
    ("one", |all| all.local().to("lobby").except("quiet"), &[0]),
    ("except only", |all| all.except("lobby").local(), &[2]),
    ("nobody here", |all| all.to("alone").local(), &[]),
];

/// Runs something that must cost no node a frame.
async fn free<T>(cluster: &Cluster, what: &str, run: impl AsyncFnOnce() -> T) -> T {
    let before = cluster.frames();
    let output = run().await;
    assert_eq!(cluster.frames(), before, "{what} touches no other node");
    output
}

/// Who acknowledges what is asked here.
async fn ask(operator: Operators) -> Vec<(Sid, Bytes)> {
    let acks: Acks = at_once(operator.emit_with_ack("ask", &ASKED)).unwrap();
    let acks = soon("the acknowledgements", collect(acks)).await;
    let mut acks: Vec<_> = acks.into_iter().map(|(sid, ack)| (sid, ack.unwrap())).collect();
    acks.sort();
    acks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_emitted_here_stays_here() {
    Cluster::each("compat-here", async |cluster| {
        for (what, select, expected) in HERE {
            let here = || select(cluster.io(0));
            let words = [cluster.word(), cluster.word()];
            let acks = free(cluster, what, async || {
                at_once(here().emit("said", &words[0])).unwrap();
                at_once(here().volatile().emit("said", &words[1])).unwrap();
                ask(here()).await
            })
            .await;
            assert_eq!(acks, cluster.sids(expected).into_iter().map(|sid| (sid, ACKED)).collect::<Vec<_>>());
            assert_eq!(cluster.hear(0, &words[0]).await, expected, "{what}");
            // What is volatile goes to the transport, which clients in this process have not, and nowhere else.
            assert_eq!(cluster.heard(&words[1]), [0; 0], "{what}, volatile");
        }
        let (socket, word) = (cluster.socket(1), cluster.word());
        free(cluster, "a socket's broadcast", async || {
            at_once(socket.broadcast().local().emit("said", &word)).unwrap();
        })
        .await;
        assert_eq!(cluster.hear(0, &word).await, [0, 2]);
        let word = cluster.word();
        let acks = free(cluster, "a socket's emit", async || {
            at_once(socket.local().to(["lobby", "quiet"]).emit("said", &word)).unwrap();
            ask(socket.local().within("quiet")).await
        })
        .await;
        assert_eq!(acks, [(socket.id, ACKED)]);
        assert_eq!(cluster.hear(0, &word).await, [0]);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_asked_and_ordered_here_stays_here() {
    Cluster::each("compat-kept", async |cluster| {
        for (number, (what, select, expected)) in HERE.into_iter().enumerate() {
            let (here, room) = (|| select(cluster.io(0)), format!("kept-{number}"));
            free(cluster, what, async || {
                assert_eq!(at_once(fetched(here())), cluster.sids(expected), "{what}");
                assert!(!at_once(rooms(here())).contains(&room), "{what}");
                at_once(here().join(room.clone())).unwrap();
                assert_eq!(at_once(rooms(here())).contains(&room), !expected.is_empty(), "{what}");
                let joined = || cluster.io(0).to(room.clone());
                assert_eq!(at_once(fetched(joined().local())), cluster.sids(expected), "{what}");
            })
            .await;
            // In the whole cluster nobody else is in it.
            assert_eq!(fetched(cluster.io(0).to(room.clone())).await, cluster.sids(expected), "{what}");
            free(cluster, what, async || {
                at_once(here().leave(room.clone())).unwrap();
                assert!(!at_once(rooms(cluster.io(0).local())).contains(&room), "{what}");
            })
            .await;
        }
        // Others keep what is left here.
        free(cluster, "leaving", async || at_once(cluster.io(0).local().leave("quiet")).unwrap()).await;
        assert_eq!(fetched(cluster.io(0).to("quiet")).await, cluster.sids(&[4, 5]));
        assert_eq!(at_once(rooms(cluster.io(0).local())), names(["lobby"]));
        assert_eq!(rooms(cluster.io(0)).await, names(["lobby", "quiet", "alone"]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_disconnected_here_is_gone_at_once_and_others_stay() {
    Cluster::each("compat-sent", async |cluster| {
        for (server, select, expected, stay) in [
            (2, (|all| all.to("lobby").local()) as Select, &[][..], &[0, 1, 2, 3, 4, 5, 6, 7][..]),
            (2, |all| all.to("alone").local(), &[6], &[0, 1, 2, 3, 4, 5, 7]),
            (0, |all| all.to("lobby").local(), &[0, 1], &[2, 3, 4, 5, 7]),
            (2, |all| all.local(), &[5, 7], &[2, 3, 4]),
        ] {
            let word = cluster.word();
            free(cluster, "a disconnection", async || {
                at_once(select(cluster.io(server)).emit("said", &word)).unwrap();
                at_once(select(cluster.io(server)).disconnect()).unwrap();
                assert!(at_once(fetched(select(cluster.io(server)))).is_empty());
            })
            .await;
            assert_eq!(cluster.hear(server, &word).await, expected);
            assert_eq!(fetched(cluster.io(server)).await, cluster.sids(stay));
            assert!((0..8).all(|seat| stay.contains(&seat) != cluster.is_gone(seat)));
        }
    })
    .await;
}

/// A socket that `fetch_sockets` found on this very server.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_found_socket_of_this_server_is_here() {
    Cluster::each("compat-own", async |cluster| {
        let socket = cluster.remote(0, 1).await;
        let word = cluster.word();
        free(cluster, "a socket of this server", async || {
            at_once(socket.emit("said", &word)).unwrap();
            at_once(socket.join("attic")).unwrap();
            assert_eq!(at_once(socket.rooms()).unwrap().len(), 3);
            at_once(socket.leave("attic")).unwrap();
            let acks: Acks = at_once(socket.emit_with_ack("ask", &ASKED)).unwrap();
            assert_eq!(soon("the acknowledgement", collect(acks)).await.len(), 1);
            at_once(socket.disconnect()).unwrap();
            assert_eq!(at_once(fetched(cluster.io(0).local())), cluster.sids(&[0, 2]));
        })
        .await;
        assert_eq!(cluster.hear(0, &word).await, [1]);
    })
    .await;
}
