//! Contract 3 for orders: what is sent to a room right after members elsewhere were ordered into it reaches them.

use std::sync::{Arc, Mutex};

use cluster_tests::wait::soon;
use cluster_tests::{Setup, eventually};
use roomcast::socketioxide::RoomcastAdapterConfig;

use super::sockets::{Parser, Server};

const ROUNDS: usize = 1_000;
/// Socket.IO servers drop what a client does not read in time: so many messages wait for it at most.
const AHEAD: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_after_the_order_to_join_reaches_members_elsewhere() {
    let nodes = Setup::new("order-plain").formed(3).await;
    let handles: Vec<_> = nodes.iter().map(|node| node.namespace("/chat").unwrap()).collect();
    let heard: [Arc<Mutex<Vec<String>>>; 2] = Default::default();
    let members = [1, 2].map(|at: usize| {
        let heard = Arc::clone(&heard[at - 1]);
        let sink = move |message: bytes::Bytes| {
            heard.lock().unwrap().push(String::from_utf8(message.to_vec()).unwrap());
        };
        let member = handles[at].connect(sink);
        member.join("lobby").unwrap();
        member
    });
    for at in [1, 2] {
        soon("the lobby is known", nodes[at].settled()).await;
    }
    for round in 0..ROUNDS {
        let room = format!("x-{round}");
        let ordered = handles[0].to("lobby").join(&room).unwrap();
        let sent = handles[0].to(&room).emit(room.clone()).unwrap();
        assert_eq!((ordered.queued, sent.queued), (2, 2), "{room}");
        if round % 100 == 0 {
            assert_eq!(*handles[0].room_size(&room).await.unwrap(), 2, "a question is a message, too");
        }
    }
    let expected: Vec<String> = (0..ROUNDS).map(|round| format!("x-{round}")).collect();
    for heard in &heard {
        eventually("all have come", || heard.lock().unwrap().len() >= ROUNDS).await;
        assert_eq!(*heard.lock().unwrap(), expected);
    }
    // What was only supposed is forgotten: the nodes are asked for what they have.
    handles[0].to("lobby").leave("x-0").unwrap();
    eventually("nobody is supposed to be there any more", || {
        handles[0].to("x-0").emit("late").unwrap().targeted == 0
    })
    .await;
    drop(members);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_after_the_order_to_join_reaches_sockets_elsewhere() {
    let nodes = Setup::new("order-sio").formed(3).await;
    let config = RoomcastAdapterConfig::new().with_exact_rooms(true);
    let mut servers = Vec::new();
    for node in &nodes {
        servers.push(Server::start(node, Parser::Json, config.clone()).await);
    }
    let clients = [servers[1].connect(&["lobby"]).await, servers[2].connect(&["lobby"]).await];
    for node in &nodes {
        soon("the lobby is known", node.settled()).await;
    }
    for round in 0..ROUNDS {
        let room = format!("x-{round}");
        servers[0].all().within("lobby").join(room.clone()).await.unwrap();
        servers[0].all().to(room).emit("moved", &round).await.unwrap();
        if (round + 1) % AHEAD == 0 {
            for client in &clients {
                eventually(format!("{round} and all before have come"), || {
                    client.count(b"moved") == round + 1
                })
                .await;
            }
        }
    }
    servers[0].all().emit("last", "words").await.unwrap();
    for client in &clients {
        eventually("the last words", || client.heard(b"words")).await;
        assert_eq!(client.count(b"moved"), ROUNDS, "each once");
    }
}
