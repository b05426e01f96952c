//! smoke
use std::time::{Duration, Instant};
use roomcast::Node;
use roomcast::quic::tls::ClusterSecret;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smoke() {
    tracing_subscriber::fmt().with_env_filter("roomcast=debug,chitchat=warn").init();
    let secret = ClusterSecret::generate().unwrap();
    let t = Instant::now();
    let a = Node::builder().id("a").listen("127.0.0.1:0").secret(secret.clone()).start().await.unwrap();
    let b = Node::builder().id("b").listen("127.0.0.1:0").seeds([a.local_addr()]).secret(secret.clone()).start().await.unwrap();
    let c = Node::builder().id("c").listen("127.0.0.1:0").seeds([a.local_addr()]).secret(secret).start().await.unwrap();
    for n in [&a, &b, &c] {
        tokio::time::timeout(Duration::from_secs(5), n.members_until(|m| m.iter().filter(|m| m.linked).count() == 3)).await.unwrap();
    }
    println!("formed in {:?}", t.elapsed());
    let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel();
    let nsb = b.namespace("/chat").unwrap();
    let m = nsb.connect(move |m: bytes::Bytes| { tx.send(m).unwrap(); });
    m.join("lobby").unwrap();
    let nsa = a.namespace("/chat").unwrap();
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(20)).await;
        println!("{:?}", nsa.to("lobby").emit("hi").unwrap());
    }
    println!("{:?}", rx.recv().await);
}
