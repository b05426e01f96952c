//! What the example `chat` tells of people and rooms over three nodes in three processes: who is where, which rooms there
//! are, who has seen a message. Clients are those of the official JavaScript library.

use cluster_tests::chat::{ChatCluster, ChatNode};
use cluster_tests::client::{Client, Clients, Transport};
use serde_json::{Value, json};

/// The room that everyone joins.
const ROOM: &str = "lobby";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_in_a_room_and_which_rooms_there_are_is_told_on_every_node() {
    let Some(clients) = Clients::start() else { return };
    let [a, mut b, c] = ChatCluster::new("common").three().await;
    let websocket =
        async |name: &str, node: &ChatNode| clients.connect(name, node, "common", Transport::WebSocket).await;
    let (ann, carol) = (websocket("ann", &a).await, websocket("carol", &c).await);
    let bob = clients.connect("bob", &b, "common", Transport::Polling).await;
    assert_eq!(ann.emit("name", json!("Ann")).await, json!({ "ok": true }));
    let person =
        |client: &Client, name: &str, node: &str| json!({ "id": client.sid(), "name": name, "node": node });
    let people = async |client: &Client, mut expected: Vec<Value>| {
        expected.sort_by_key(Value::to_string);
        let is_so = |people: &Value| {
            let mut list = people["list"].as_array().cloned().unwrap_or_default();
            list.sort_by_key(Value::to_string);
            people["room"] == ROOM
                && people["count"] == expected.len()
                && people["missing"] == json!([])
                && list == expected
        };
        client.hears("people", is_so).await;
    };
    let rooms = async |client: &Client, expected: &[&str]| {
        client.hears("rooms", |list| *list == json!({ "rooms": expected, "more": 0 })).await;
    };

    ann.join(ROOM).await;
    people(&ann, vec![person(&ann, "Ann", "a")]).await;
    bob.join(ROOM).await;
    for client in [&ann, &bob] {
        people(client, vec![person(&ann, "Ann", "a"), person(&bob, "", "b")]).await;
    }
    assert_eq!(bob.emit("name", json!("x".repeat(101))).await["ok"], json!(false));
    assert_eq!(bob.emit("name", json!("Bob")).await, json!({ "ok": true }));
    for client in [&ann, &bob] {
        people(client, vec![person(&ann, "Ann", "a"), person(&bob, "Bob", "b")]).await;
    }
    // Who is in no room hears of the rooms all the same, and who comes late hears at once.
    rooms(&carol, &[ROOM]).await;
    carol.join("other").await;
    let late = websocket("late", &b).await;
    for client in [&ann, &bob, &carol, &late] {
        rooms(client, &[ROOM, "other"]).await;
    }
    bob.leave(ROOM).await;
    people(&ann, vec![person(&ann, "Ann", "a")]).await;
    carol.leave("other").await;
    rooms(&late, &[ROOM]).await;

    // With a node, its people and rooms go.
    bob.join(ROOM).await;
    people(&ann, vec![person(&ann, "Ann", "a"), person(&bob, "Bob", "b")]).await;
    bob.join("only there").await;
    rooms(&carol, &[ROOM, "only there"]).await;
    b.kill().await;
    people(&ann, vec![person(&ann, "Ann", "a")]).await;
    rooms(&carol, &[ROOM]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_sends_a_message_hears_who_has_seen_it() {
    let Some(clients) = Clients::start() else { return };
    for parser in ["common", "msgpack"] {
        let [a, b, mut c] = ChatCluster::new(parser).three().await;
        let ann = clients.connect(format!("ann-{parser}"), &a, parser, Transport::WebSocket).await;
        let bob = clients.connect(format!("bob-{parser}"), &b, parser, Transport::Polling).await;
        let carol = clients.connect(format!("carol-{parser}"), &c, parser, Transport::WebSocket).await;
        let send = async |id: u32, message: Value| {
            let mut message = message;
            message["room"] = ROOM.into();
            message["id"] = id.into();
            assert_eq!(ann.emit("message", message).await, json!({ "ok": true }));
        };
        let seen = async |id: u32, by: u32, of: u32, missing: &[&str]| {
            let seen = ann.hears("seen", |seen| seen["id"] == id).await;
            let expected = json!({ "room": ROOM, "id": id, "by": by, "of": of, "missing": missing });
            assert_eq!(seen, expected, "{parser}");
        };
        ann.join(ROOM).await;
        send(0, json!({ "text": "hello?" })).await;
        seen(0, 0, 0, &[]).await;
        bob.join(ROOM).await;
        carol.join(ROOM).await;
        ann.hears("people", |people| people["count"] == 3).await;

        send(1, json!({ "text": "all here", "data": { "bytes": "00ff" } })).await;
        seen(1, 2, 2, &[]).await;
        for client in [&ann, &bob, &carol] {
            let messages = client.messages();
            let last = messages.last().unwrap();
            assert_eq!(
                (&*last.text, last.data.as_deref()),
                ("all here", Some(&[0, 255][..])),
                "{}",
                client.name
            );
        }
        carol.acknowledges_with(Some(false)).await;
        send(2, json!({ "text": "not in sight" })).await;
        seen(2, 1, 2, &[]).await;
        carol.acknowledges_with(None).await;
        send(3, json!({ "text": "no answer" })).await;
        seen(3, 1, 2, &[]).await;
        // The answer of a node that dies is missing, and its name is told.
        send(4, json!({ "text": "and then it died" })).await;
        carol.gets("and then it died").await;
        c.kill().await;
        seen(4, 1, 1, &["c"]).await;
    }
}
