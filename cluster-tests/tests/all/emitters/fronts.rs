//! What an emitter orders and asks, with fronts that do it: members of the plain API, sockets of socketioxide, handlers of
//! server events.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use cluster_tests::wait::soon;
use cluster_tests::{Live, Recorder, Setup, eventually};
use roomcast::emitter::SocketInfo;
use roomcast::socketioxide::RoomcastAdapterConfig;
use roomcast::{Emitter, ServerEvent};

use super::builder;
use crate::sockets::{NS, Parser, Server};

/// The selected sockets, as `node id`.
async fn selected(emitter: &Emitter, room: &str) -> BTreeSet<String> {
    let found = soon("sockets", emitter.of(NS).to(room).sockets()).await.unwrap();
    assert_eq!(found.missing, []);
    found.iter().map(|SocketInfo { node, id, .. }| format!("{node} {id}")).collect()
}

async fn sizes(emitter: &Emitter) -> Vec<(String, u64)> {
    soon("rooms", emitter.of(NS).rooms()).await.unwrap().value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emitter_asks_and_moves_the_clients_of_both_fronts() {
    for (parser, exact) in [(Parser::Json, true), (Parser::MsgPack, false)] {
        let setup = Setup::new(if exact { "em-exact" } else { "em-flood" });
        let nodes = setup.formed(3).await;
        let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
        // Sockets on two nodes, a member on the third, and one beside sockets.
        let servers = [
            Server::start(&nodes[0], parser, config.clone()).await,
            Server::start(&nodes[1], parser, config).await,
        ];
        let clients = [servers[0].connect(&["lobby"]).await, servers[1].connect(&["lobby", "hall"]).await];
        let plain = [&nodes[1], &nodes[2]].map(|node| {
            let member = node.namespace(NS).unwrap().connect(Recorder::new());
            member.join("lobby").unwrap();
            member
        });
        plain[1].set_data("third").unwrap();
        let emitter = builder(&setup, &nodes).connect().await.unwrap();

        let ids = |node: &Live, id: String| format!("{} {id}", node.name());
        let everyone: BTreeSet<String> = [
            ids(&nodes[0], clients[0].sid.to_string()),
            ids(&nodes[1], clients[1].sid.to_string()),
            ids(&nodes[1], plain[0].id().to_string()),
            ids(&nodes[2], plain[1].id().to_string()),
        ]
        .into();
        // The nodes hear of each other's rooms a moment after they are there.
        while selected(&emitter, "lobby").await != everyone {}
        assert_eq!(emitter.of(NS).count().await.unwrap().value, 4);
        assert_eq!(emitter.of(NS).to("lobby").except("hall").count().await.unwrap().value, 3);
        assert_eq!(emitter.of(NS).to("nobody").count().await.unwrap().value, 0);
        assert_eq!(emitter.of("/not-there").count().await.unwrap().value, 0);
        assert_eq!(sizes(&emitter).await, [("hall".to_owned(), 1), ("lobby".to_owned(), 4)]);
        let found = emitter.of(NS).to("lobby").sockets().await.unwrap();
        let third = found.iter().find(|socket| socket.node == *nodes[2].id()).unwrap();
        assert_eq!(
            (&third.data[..], &third.rooms[..], &third.server),
            (&b"third"[..], &["lobby".to_owned()][..], &None)
        );

        // Orders, and questions behind them.
        emitter.of(NS).to("lobby").except("hall").join(["attic", "cellar"]).unwrap();
        emitter.of(NS).to("lobby").leave("cellar").unwrap();
        assert_eq!(sizes(&emitter).await[0], ("attic".to_owned(), 3));
        assert_eq!(sizes(&emitter).await.len(), 3, "nobody is in the cellar");
        while selected(&emitter, "attic").await.len() < 3 {}
        emitter.of(NS).to("attic").disconnect().unwrap();
        assert_eq!(sizes(&emitter).await, [("hall".to_owned(), 1), ("lobby".to_owned(), 1)]);
        assert!(plain.iter().all(|member| !member.is_connected()));
        assert_eq!(selected(&emitter, "lobby").await, [ids(&nodes[1], clients[1].sid.to_string())].into());
        emitter.close().await.unwrap();
        eventually("no question is left", || nodes.iter().all(|node| node.pending_requests() == (0, 0)))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_hear_the_events_of_an_emitter_once() {
    let setup = Setup::new("em-servers");
    let nodes = setup.formed(3).await;
    let heard: Arc<Mutex<Vec<String>>> = Arc::default();
    let mut guards = Vec::new();
    // The last node handles nothing.
    for node in &nodes[..2] {
        for namespace in [None, Some(node.namespace("/chat").unwrap())] {
            let (heard, name) = (Arc::clone(&heard), node.name().to_owned());
            let place = if namespace.is_some() { "chat" } else { "node" };
            let handler = move |event: ServerEvent<u64>| {
                heard.lock().unwrap().push(format!("{place} {name} {}", event.data));
                async {}
            };
            guards.push(match namespace {
                Some(namespace) => namespace.on_server_event("number", handler).unwrap(),
                None => node.on_server_event("number", handler).unwrap(),
            });
        }
    }
    for node in &nodes {
        node.settled().await;
    }
    let emitter = builder(&setup, &nodes).connect().await.unwrap();
    emitter.server_side_emit("number", &1).unwrap();
    emitter.of("/chat").server_side_emit("number", &2).unwrap();
    emitter.server_side_emit("another", &3).unwrap();
    emitter.flush().await.unwrap();
    let mut expected = Vec::new();
    for node in &nodes[..2] {
        expected.extend([format!("chat {} 2", node.name()), format!("node {} 1", node.name())]);
    }
    expected.sort();
    let sorted = || {
        let mut heard = heard.lock().unwrap().clone();
        heard.sort();
        heard
    };
    eventually("every handler has heard it", || sorted().len() >= expected.len()).await;
    assert_eq!(sorted(), expected);
}
