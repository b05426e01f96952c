//! The front for socketioxide on real nodes: flood namespaces, exact ones, and the way from one to the other.

use cluster_tests::logs::logged;
use cluster_tests::wait::soon;
use cluster_tests::{Live, Setup, eventually};
use roomcast::socketioxide::{Adapter, RoomcastAdapter, RoomcastAdapterConfig, RoomcastAdapterCtr, Socket};
use socketioxide::SocketIo;
use socketioxide::extract::SocketRef;

/// What a client in the same process gets, as text.
macro_rules! received {
    ($receiver:expr, $part:expr) => {{
        let what = format!("a packet with {}", $part);
        let wanted = async {
            loop {
                let packet = format!("{:?}", $receiver.recv().await.expect("the socket is connected"));
                if packet.contains($part) {
                    break packet;
                }
                assert!(!packet.contains("wrong"), "{packet}");
            }
        };
        cluster_tests::wait::soon(what, wanted).await
    }};
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_namespace_gets_everything_and_picks_its_own() {
    let nodes = Setup::new("flood").formed(2).await;
    let ios = [serve(&nodes[0], false), serve(&nodes[1], false)];
    for io in &ios {
        io.ns("/flood", async |socket: SocketRef<Adapter>| socket.join("lobby")).await.unwrap();
    }
    // Nobody is connected there, and nobody is in the room: it floods.
    eventually_frames(&nodes[0], &ios[0], "/flood", "nobody", true).await;
    let (_tx, mut rx) = ios[1].new_dummy_sock("/flood", ()).await;
    emit_until_received(&ios[0], "/flood", "lobby", &mut rx).await;
    for number in 0..20 {
        emit(&ios[0], "/flood", "elsewhere", "wrong").await;
        emit(&ios[0], "/flood", "lobby", &format!("right-{number}-")).await;
    }
    for number in 0..20 {
        received!(rx, &format!("right-{number}-"));
    }
    // A namespace that only this node has is sent to nobody.
    ios[0].ns("/here", async |_: SocketRef<Adapter>| {}).await.unwrap();
    eventually_frames(&nodes[0], &ios[0], "/here", "lobby", false).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exact_namespace_gets_what_it_has_members_for_until_a_raw_join() {
    let nodes = Setup::new("exact").formed(2).await;
    let ios = [serve(&nodes[0], true), serve(&nodes[1], true)];
    for io in &ios {
        io.ns("/exact", async |socket: Socket| {
            socket.join("lobby");
        })
        .await
        .unwrap();
    }
    eventually_frames(&nodes[0], &ios[0], "/exact", "lobby", false).await;
    let (tx, mut rx) = ios[1].new_dummy_sock("/exact", ()).await;
    emit_until_received(&ios[0], "/exact", "lobby", &mut rx).await;
    assert!(!costs_a_frame(&nodes[0], &ios[0], "/exact", "attic").await, "nobody is in that room");

    ios[1].of("/exact").unwrap().sockets().iter().for_each(|socket| socket.join("attic"));
    emit_until_received(&ios[0], "/exact", "attic", &mut rx).await;
    logged(nodes[1].name(), &["/exact"]).await;
    assert!(costs_a_frame(&nodes[0], &ios[0], "/exact", "cellar").await, "it floods now");
    drop(tx);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plain_api_finds_sockets_with_their_value_rooms_and_node() {
    let nodes = Setup::new("found").formed(3).await;
    let plain = nodes[0].namespace("/found").unwrap();
    let other = nodes[2].namespace("/found").unwrap();
    for exact in [false, true] {
        let io = serve(&nodes[1], exact);
        let connect = async |socket: Socket| {
            socket.set_data("user-1").unwrap();
            socket.join(["lobby", "hall"]);
        };
        io.ns("/found", connect).await.unwrap();
        let (_tx, _rx) = io.new_dummy_sock("/found", ()).await;
        let member = other.connect(|_| {});
        member.join("lobby").unwrap();
        member.set_data("user-2").unwrap();
        let both = async {
            while *plain.room_size("lobby").await.unwrap() != 2
                || *plain.room_size("hall").await.unwrap() != 1
            {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        soon("both are known", both).await;
        let mut sockets = plain.to("lobby").sockets().await.unwrap();
        assert_eq!(sockets.missing, []);
        sockets.value.sort_by_key(|socket| socket.data.clone());
        let [one, two] = &sockets.value[..] else { panic!("{sockets:?}") };
        let socket = io.of("/found").unwrap().sockets().remove(0);
        assert_eq!((&one.node, &one.id, one.member()), (nodes[1].id(), &socket.id.to_string(), None));
        assert!(one.server.is_some());
        assert_eq!((&one.rooms[..], &one.data[..]), (&["hall".into(), "lobby".into()][..], &b"user-1"[..]));
        assert_eq!(
            (&two.node, two.member(), &two.data[..]),
            (nodes[2].id(), Some(member.id()), &b"user-2"[..])
        );

        // What is ordered is for both fronts.
        plain.to("hall").join("moved").unwrap();
        assert_eq!(plain.to("hall").rooms().await.unwrap().value, ["hall", "lobby", "moved"]);
        plain.to("lobby").disconnect().unwrap();
        assert_eq!(*plain.to("lobby").count().await.unwrap(), 0);
        eventually("both are gone", || !socket.connected() && !member.is_connected()).await;
        io.delete_ns("/found");
    }
}

fn serve(node: &Live, exact: bool) -> SocketIo<Adapter> {
    let config = RoomcastAdapterConfig::new().with_exact_rooms(exact);
    let constructor = RoomcastAdapterCtr::new_with_config(&node.node, config);
    SocketIo::builder().with_adapter::<RoomcastAdapter<_>>(constructor).build_layer().1
}

async fn emit(io: &SocketIo<Adapter>, ns: &str, room: &'static str, text: &str) {
    io.of(ns).unwrap().to(room).emit("said", text).await.unwrap();
}

/// Emits again and again, until the client has one of the messages.
async fn emit_until_received<P: std::fmt::Debug>(
    io: &SocketIo<Adapter>,
    ns: &str,
    room: &'static str,
    rx: &mut tokio::sync::mpsc::Receiver<P>,
) {
    let wanted = async {
        loop {
            emit(io, ns, room, "probe").await;
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            while let Ok(packet) = rx.try_recv() {
                if format!("{packet:?}").contains("probe") {
                    return;
                }
            }
        }
    };
    cluster_tests::wait::soon(format!("a message in {room}"), wanted).await;
}

/// Whether a message for the room is sent to the other node.
async fn costs_a_frame(node: &Live, io: &SocketIo<Adapter>, ns: &str, room: &'static str) -> bool {
    let before = node.frames_sent();
    emit(io, ns, room, "probe").await;
    node.frames_sent() > before
}

async fn eventually_frames(node: &Live, io: &SocketIo<Adapter>, ns: &str, room: &'static str, wanted: bool) {
    let wait = async {
        while costs_a_frame(node, io, ns, room).await != wanted {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    cluster_tests::wait::soon(format!("frames for {room} of {ns}: {wanted}"), wait).await;
    eventually("the node lives", || node.is_live()).await;
}
