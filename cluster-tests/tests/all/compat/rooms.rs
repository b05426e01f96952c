//! Rooms: joining, leaving and listing them, from any server.

use std::borrow::Cow;

use super::super::operations::{fetched, rooms, until_fetched};
use super::{Cluster, SEATS, SELECTIONS, names};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rooms_are_those_of_the_selected_sockets() {
    Cluster::each("compat-listed", async |cluster| {
        for (what, select, expected) in SELECTIONS {
            let listed = expected.iter().flat_map(|seat| SEATS[*seat].1).map(ToString::to_string).collect();
            for server in 0..3 {
                assert_eq!(rooms(select(cluster.io(server))).await, listed, "{what}, on server {server}");
            }
        }
        let socket = cluster.socket(1);
        assert_eq!(rooms(socket.to("lobby")).await, names(["lobby", "quiet"]));
        assert_eq!(rooms(socket.broadcast().except("quiet")).await, names(["lobby", "alone"]));
        // Without a room of its own, or of any.
        assert_eq!(rooms(cluster.io(0).except(["lobby", "quiet", "alone"])).await, names([]));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_selected_sockets_join_and_leave() {
    Cluster::in_turns("compat-moved", async |cluster| {
        for (number, (what, select, expected)) in SELECTIONS.into_iter().enumerate() {
            let server = number % 3;
            let (io, of) = (|| cluster.io(server), |room: &str| format!("{room}-{number}"));
            let (one, two) = (of("one"), of("two"));
            let before = rooms(io()).await;
            select(io()).join(vec![one.clone(), two.clone()]).await.unwrap();
            select(io()).join(one.clone()).await.unwrap();
            let mut after = before.clone();
            if !expected.is_empty() {
                after.extend([one.clone(), two.clone()]);
            }
            assert_eq!(rooms(io()).await, after, "{what}: joined");
            for room in [&one, &two] {
                // No other server knows of it sooner than this one.
                assert_eq!(cluster.emit(server, io().to(room.clone())).await, expected, "{what}: in {room}");
                assert_eq!(fetched(io().to(room.clone())).await, cluster.sids(expected), "{what}: in {room}");
            }
            let other = (server + 1) % 3;
            until_fetched(what, || cluster.io(other).to(one.clone()), expected.len()).await;
            assert_eq!(cluster.emit(other, cluster.io(other).to(one.clone())).await, expected, "{what}");

            // Leaving is for the selected ones only, and leaving what one is not in changes nothing.
            io().to("nobody").leave(one.clone()).await.unwrap();
            io().leave(of("never")).await.unwrap();
            assert_eq!(rooms(io()).await, after, "{what}: nobody has left");
            select(io()).leave(one.clone()).await.unwrap();
            assert_eq!(cluster.emit(server, io().to(one.clone())).await, [0; 0], "{what}: {one} was left");
            assert_eq!(cluster.emit(server, io().to(two.clone())).await, expected, "{what}: {two} was not");
            io().to(two.clone()).leave(vec![one.clone(), two.clone()]).await.unwrap();
            assert_eq!(rooms(io()).await, before, "{what}: left");
            assert!(fetched(io().to(two)).await.is_empty());
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_socket_joins_and_leaves_wherever_it_is() {
    Cluster::each("compat-member", async |cluster| {
        // From its own server and from others; with rooms and without.
        for (server, seat) in [(0, 1), (0, 4), (2, 3), (1, 2), (0, 7)] {
            let socket = cluster.remote(server, seat).await;
            let listed = async || {
                let rooms = socket.rooms().await.unwrap();
                let mut rooms: Vec<String> = rooms.into_iter().map(Cow::into_owned).collect();
                rooms.sort();
                rooms
            };
            let before = listed().await;
            assert_eq!(before, SEATS[seat].1);
            let of = |room: &str| format!("{room}-{seat}");
            socket.join(vec![of("x"), of("y")]).await.unwrap();
            assert_eq!(cluster.emit(server, cluster.io(server).to(of("x"))).await, [seat]);
            assert_eq!(listed().await, [before.clone(), vec![of("x"), of("y")]].concat());
            assert_eq!(rooms(cluster.io(server).to(of("y"))).await, listed().await.into_iter().collect());
            socket.leave(of("x")).await.unwrap();
            assert_eq!(cluster.emit(server, cluster.io(server).to(of("x"))).await, [0; 0]);
            assert_eq!(listed().await, [before.clone(), vec![of("y")]].concat());
            // Its own view is the same.
            assert_eq!(cluster.socket(seat).rooms().len(), before.len() + 1);
            socket.leave(of("y")).await.unwrap();
            assert_eq!(listed().await, before);
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_rooms_are_left() {
    Cluster::each("compat-all-left", async |cluster| {
        // One by its own server, one by another, then everybody.
        cluster.socket(4).leave_all();
        assert!(cluster.socket(4).rooms().is_empty());
        assert_eq!(fetched(cluster.io(0).to("lobby")).await, cluster.sids(&[0, 1, 3]));
        let socket = cluster.remote(0, 5).await;
        socket.leave(socket.rooms().await.unwrap()).await.unwrap();
        assert_eq!(socket.rooms().await.unwrap(), [""; 0]);
        assert_eq!(fetched(cluster.io(0).to("quiet")).await, cluster.sids(&[1]));
        assert_eq!(cluster.emit(0, cluster.io(0).to(["lobby", "quiet"])).await, [0, 1, 3]);

        cluster.io(0).leave(["lobby", "quiet", "alone"]).await.unwrap();
        assert_eq!(rooms(cluster.io(0)).await, names([]));
        assert_eq!(cluster.emit(0, cluster.io(0).to(["lobby", "quiet", "alone"])).await, [0; 0]);
        assert_eq!(cluster.emit(0, cluster.io(0)).await, [0, 1, 2, 3, 4, 5, 6, 7], "nobody has gone");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_server_does_is_seen_in_this_order() {
    Cluster::each("compat-order", async |cluster| {
        let mut said = Vec::new();
        for round in 0..30 {
            let (_, select, expected) = SELECTIONS[round % SELECTIONS.len()];
            let (room, early, right, late) =
                (format!("round-{round}"), cluster.word(), cluster.word(), cluster.word());
            let to = || cluster.io(0).to(room.clone());
            to().emit("said", &early).await.unwrap();
            select(cluster.io(0)).join(room.clone()).await.unwrap();
            to().emit("said", &right).await.unwrap();
            if round % 2 == 0 {
                assert_eq!(rooms(cluster.io(0)).await.contains(&room), !expected.is_empty(), "{room}");
            }
            select(cluster.io(0)).leave(room.clone()).await.unwrap();
            to().emit("said", &late).await.unwrap();
            if round % 3 == 0 {
                assert!(!rooms(cluster.io(0)).await.contains(&room), "{room} was left");
            }
            said.push((round, expected, [early, right, late]));
        }
        cluster.hear(0, &cluster.word()).await;
        for (round, expected, [early, right, late]) in said {
            assert_eq!(cluster.heard(&right), expected, "round {round}");
            assert!(cluster.heard(&early).is_empty() && cluster.heard(&late).is_empty(), "round {round}");
        }
    })
    .await;
}
