use std::pin::pin;
use std::task::{Context, Poll, Waker};

use super::*;
use crate::harness::ground::Settings;

fn now<F: Future>(future: F) -> F::Output {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("futures of this ground are ready at once"),
    }
}

fn linked(ground: &mut Simulated, nodes: usize) -> bool {
    (0..nodes).all(|node| match now(ground.ask(node, Ask::Report)) {
        Some(Answer::Report(report)) => {
            report.members.len() == nodes && report.members.iter().all(|member| member.linked)
        }
        _ => false,
    })
}

#[test]
fn nodes_find_each_other_and_messages_arrive() {
    let mut ground = Simulated::new(1);
    let nodes = 3;
    for node in 0..nodes {
        let seeds = (0..nodes).map(|seed| ground.seed(seed)).collect();
        let plan = Plan { id: format!("n{node}"), seeds, settings: Settings::default() };
        now(ground.start(node, &plan));
    }
    while !linked(&mut ground, nodes) {
        assert!(ground.now() < Duration::from_secs(10));
        now(ground.sleep(Duration::from_millis(100)));
    }
    now(ground.ask(1, Ask::Join("lobby".into())));
    now(ground.ask(1, Ask::Settle));
    now(ground.sleep(Duration::from_millis(100)));
    now(ground.ask(0, Ask::Emit("lobby".into(), 3, 100)));
    now(ground.sleep(Duration::from_millis(100)));
    let delivered = |entry: &&Entry| matches!(entry.what, What::Delivered { from: 0, .. }) && entry.node == 1;
    assert_eq!(ground.history().entries.iter().filter(delivered).count(), 3);
    now(ground.sleep(Duration::from_secs(30)));
    assert!(linked(&mut ground, nodes), "and they stay together");
}
