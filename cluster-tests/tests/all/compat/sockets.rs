//! Sockets of all servers: finding them, addressing one, disconnecting them.

use std::collections::{BTreeMap, BTreeSet};

use cluster_tests::eventually;
use cluster_tests::wait::soon;

use super::super::operations::{Acks, acked, collect, fetched, rooms};
use super::super::sockets::{ACKED, ASKED, NS};
use super::{Cluster, SEATS, SELECTIONS, Select, names};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_selected_sockets_are_found_from_every_server() {
    Cluster::each("compat-found", async |cluster| {
        for (what, select, expected) in SELECTIONS {
            for server in 0..3 {
                let found = select(cluster.io(server)).fetch_sockets().await.unwrap();
                let sids: BTreeSet<_> = found.iter().map(|socket| socket.data().id).collect();
                assert_eq!(sids.len(), found.len(), "{what}: each once");
                assert_eq!(sids, cluster.sids(expected), "{what}, on server {server}");
            }
        }
        assert_eq!(fetched(cluster.socket(1).to("lobby")).await, cluster.sids(&[0, 3, 4]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_server_says_the_same_of_who_is_where() {
    Cluster::each("compat-where", async |cluster| {
        let mut views = Vec::new();
        for server in 0..3 {
            let found = cluster.io(server).fetch_sockets().await.unwrap();
            assert!(found.iter().all(|socket| *socket.data().ns == *NS), "{found:?}");
            let view: BTreeMap<_, _> =
                found.iter().map(|socket| (socket.data().id, socket.data().server_id.to_string())).collect();
            views.push(view);
        }
        assert!(views.iter().all(|view| *view == views[0]), "{views:?}");
        let server_of = |seat: usize| &views[0][&cluster.client(seat).sid];
        for (seat, (server, _)) in SEATS.into_iter().enumerate() {
            for (other, (its, _)) in SEATS.into_iter().enumerate() {
                assert_eq!(server_of(seat) == server_of(other), server == its, "{seat} and {other}");
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_socket_is_addressed_wherever_it_is() {
    Cluster::each("compat-one", async |cluster| {
        for (server, seat) in [(0, 6), (0, 4), (2, 0), (1, 3)] {
            let socket = cluster.remote(server, seat).await;
            let word = cluster.word();
            socket.emit("said", &word).await.unwrap();
            assert_eq!(cluster.hear(server, &word).await, [seat]);
            let acks: Acks = socket.emit_with_ack("ask", &ASKED).await.unwrap();
            let acks = soon("the acknowledgement", collect(acks)).await;
            let sid = cluster.client(seat).sid;
            assert!(matches!(&acks[..], [(of, Ok(ack))] if *of == sid && *ack == ACKED), "{acks:?}");
            assert_eq!(cluster.client(seat).count(&ASKED), 1);

            // A word, then the end: it has come, and the others stay.
            let word = cluster.word();
            socket.emit("said", &word).await.unwrap();
            socket.clone().disconnect().await.unwrap();
            socket.emit("said", "too late").await.unwrap();
            let found = fetched(cluster.io(server)).await;
            assert!(!found.contains(&sid), "gone at once");
            eventually("the client is told to go", || cluster.is_gone(seat)).await;
            assert_eq!(cluster.hear(server, &word).await, [seat]);
            assert!(!cluster.client(seat).heard(b"too late"));

            // What is meant for a socket that has gone is for nobody.
            socket.join("ghosts").await.unwrap();
            socket.leave("ghosts").await.unwrap();
            assert_eq!(socket.rooms().await.unwrap(), [""; 0]);
            let acks: Acks = socket.emit_with_ack("ask", &ASKED).await.unwrap();
            assert!(soon("the end", collect(acks)).await.is_empty());
            socket.disconnect().await.unwrap();
        }
        assert_eq!(fetched(cluster.io(0)).await, cluster.sids(&[1, 2, 5, 7]));
        assert_eq!(rooms(cluster.io(0)).await, names(["lobby", "quiet"]), "nobody is alone, no ghosts");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_selected_sockets_are_disconnected_after_what_was_emitted() {
    Cluster::each("compat-gone", async |cluster| {
        // None, one on another server, some everywhere, all. Each from another server, with those who are left.
        let steps: [(usize, Select, &[usize], &[usize]); 5] = [
            (0, |all| all.to("nobody"), &[], &[0, 1, 2, 3, 4, 5, 6, 7]),
            (1, |all| all.to("alone"), &[6], &[0, 1, 2, 3, 4, 5, 7]),
            (2, |all| all.to("lobby").except("quiet"), &[0, 3], &[1, 2, 4, 5, 7]),
            (0, |all| all.except("quiet"), &[2, 7], &[1, 4, 5]),
            (0, |all| all, &[1, 4, 5], &[]),
        ];
        for (step, (server, select, go, stay)) in steps.into_iter().enumerate() {
            let (all, some, late) = (cluster.word(), cluster.word(), cluster.word());
            let before = [go, stay].concat().into_iter().collect::<BTreeSet<_>>();
            cluster.io(server).emit("said", &all).await.unwrap();
            select(cluster.io(server)).emit("said", &some).await.unwrap();
            select(cluster.io(server)).disconnect().await.unwrap();
            cluster.io(server).emit("said", &late).await.unwrap();
            assert_eq!(fetched(cluster.io(server)).await, cluster.sids(stay), "step {step}: gone at once");
            assert!(fetched(select(cluster.io(server))).await.is_empty(), "step {step}");
            for seat in go {
                eventually(format!("client {seat} is told to go"), || cluster.is_gone(*seat)).await;
            }
            assert_eq!(cluster.hear(server, &late).await, stay, "step {step}");
            assert_eq!(cluster.heard(&all), Vec::from_iter(before), "step {step}");
            assert_eq!(cluster.heard(&some), go, "step {step}");
            assert!(stay.iter().all(|seat| !cluster.is_gone(*seat)), "step {step}");
            let (sids, _) = acked(cluster.io(server)).await;
            assert_eq!(sids, cluster.sids(stay), "step {step}");
        }
        assert_eq!(rooms(cluster.io(1)).await, names([]));
        cluster.io(1).disconnect().await.unwrap();
        assert!(fetched(cluster.io(1)).await.is_empty());
    })
    .await;
}
