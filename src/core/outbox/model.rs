//! Two ends and a link that breaks, restarts of the peer, expiry, a bound, and each policy: nothing twice, nothing out of
//! order, and every frame is delivered, held or counted.

use std::collections::VecDeque;

use bytes::Bytes;
use proptest::prelude::*;

use super::tests::{Item, context, frame, traced};
use super::*;
use crate::core::frame::trace_frame;
use crate::core::inbox::{Inbox, Verdict};

const EPOCH: u64 = 7;

#[derive(Debug, Clone)]
enum Op {
    Push(usize),
    Take(usize),
    Deliver(usize),
    Ack,
    Down,
    /// A link comes up. The peer may say that it has less than it has, as a host does to an emitter; it hears where the
    /// link begins, or not.
    Up {
        behind: bool,
        heard: bool,
    },
    /// The peer restarts, or forgets for another reason. Its link breaks.
    Forget,
    /// Time passes. A push takes one of it, too.
    Wait(u64),
    /// What is older than so much may go.
    Expire(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        8 => prop_oneof![1usize..40, 2100usize..3000, 1usize..40, 9000usize..12000].prop_map(Op::Push),
        3 => (1usize..9000).prop_map(Op::Take),
        3 => (0usize..20).prop_map(Op::Deliver),
        2 => Just(Op::Ack),
        1 => Just(Op::Down),
        3 => (any::<bool>(), prop_oneof![1 => Just(false), 4 => Just(true)])
            .prop_map(|(behind, heard)| Op::Up { behind, heard }),
        1 => (0u64..60).prop_map(Op::Wait),
        1 => (0u64..60).prop_map(Op::Expire),
    ];
    proptest::collection::vec(op, 1..250)
}

struct Model {
    outbox: Outbox,
    inbox: Inbox,
    memory: u64,
    now: u64,
    /// When the last link ended that had begun.
    ended: u64,
    /// The link, when there is one: what was written and not read.
    wire: Option<VecDeque<Item>>,
    arrived: Vec<u64>,
    /// Frames that were taken into the outbox, refused, and counted as lost by the sender and by the receiver.
    pushed: u64,
    refused: u64,
    lost: u64,
    gap: u64,
    /// The peer has said once that it has less than it had: what it was not sent again then counts as lost, though it had it.
    behind: bool,
    /// Where the first link began that the peer heard of: frames before that are no gap there.
    begun: Option<u64>,
}

impl Model {
    fn new(limit: usize, drop_oldest: bool) -> Self {
        let outbox = Outbox::new(EPOCH, limit).dropping_oldest(drop_oldest);
        let (inbox, wire, arrived) = (Inbox::new(), None, Vec::new());
        Self {
            outbox,
            inbox,
            memory: 1,
            now: 0,
            ended: 0,
            wire,
            arrived,
            pushed: 0,
            refused: 0,
            lost: 0,
            gap: 0,
            behind: false,
            begun: None,
        }
    }

    fn step(&mut self, op: Op) {
        match op {
            Op::Push(len) => {
                let (head, payload) = frame(self.pushed + 1, len);
                self.now += 1;
                let (trace, number) = (trace_frame(&context(self.pushed + 1)), self.pushed + 1);
                let trace = Some(&trace).filter(|_| number.is_multiple_of(3));
                match self.outbox.push_at(trace, &head, &payload, || self.now) {
                    Ok(seq) => {
                        self.pushed += 1;
                        assert_eq!(seq, Seq(self.pushed));
                    }
                    Err(reason) => {
                        assert_eq!(reason, DropReason::QueueFull);
                        self.refused += 1;
                    }
                }
            }
            Op::Take(bytes) => {
                let Some(wire) = &mut self.wire else { return };
                let mut out: Vec<Bytes> = Vec::new();
                self.lost += self.outbox.take(bytes, &mut out).lost;
                let items = traced(&out);
                assert!(self.outbox.traces() || items.iter().all(|(_, traced)| !traced));
                wire.extend(items.into_iter().map(|(item, _)| item));
            }
            Op::Deliver(count) => self.deliver(count),
            Op::Ack if self.wire.is_some() => self.outbox.ack(self.inbox.received()),
            Op::Ack => {}
            Op::Down => self.down(),
            Op::Up { behind, heard } => self.up(behind, heard),
            Op::Forget => {
                self.down();
                self.inbox = Inbox::new();
                self.memory += 1;
            }
            Op::Wait(time) => self.now += time,
            Op::Expire(window) if self.wire.is_some() => {
                self.outbox.expire_unsent(self.now.saturating_sub(window));
            }
            Op::Expire(window) => {
                let expired = self.outbox.expire(self.now, window);
                let away = self.now - self.ended;
                assert!(expired == 0 || away >= window, "{expired} expired, and the link is away for {away}");
            }
        }
    }

    fn down(&mut self) {
        if self.wire.take().is_some() {
            self.ended = self.now;
        }
        self.outbox.link_ended(self.now);
    }

    fn up(&mut self, behind: bool, heard: bool) {
        self.down();
        let mut theirs = self.inbox.resume(self.memory);
        if let (true, Some((_, received))) = (behind, &mut theirs.received) {
            self.behind |= *received > self.outbox.acked().0;
            *received = self.outbox.acked().0.min(*received);
        }
        // Another kind of peer each time, in some way.
        self.outbox.set_traces(!self.pushed.is_multiple_of(4));
        self.check();
        let resumed = self.outbox.resume(&theirs);
        self.lost += resumed.lost;
        self.wire = Some(VecDeque::new());
        if heard {
            self.begun.get_or_insert(resumed.first.0);
            self.gap += self.inbox.start(EPOCH, resumed.first).gap;
        } else {
            self.down();
        }
    }

    fn deliver(&mut self, count: usize) {
        let Some(wire) = &mut self.wire else { return };
        for item in wire.drain(..count.min(wire.len())) {
            match item {
                Item::Start(first) => self.gap += self.inbox.jump(Seq(first)).expect("a step forward"),
                Item::Frame(number) => match self.inbox.accept() {
                    Verdict::Deliver => {
                        assert_eq!(self.inbox.received(), Seq(number), "both count alike");
                        self.arrived.push(number);
                    }
                    Verdict::Duplicate => assert!(self.behind),
                },
            }
        }
    }

    fn check(&self) {
        let outbox = &self.outbox;
        let chunks = || outbox.under_way.iter().chain(&outbox.waiting);
        let bytes = chunks().map(Chunk::len).sum::<usize>() + outbox.open.len();
        let frames = chunks().map(|chunk| u64::from(chunk.count)).sum::<u64>() + u64::from(outbox.open_count);
        assert_eq!((outbox.bytes(), outbox.len()), (bytes, frames));
        assert_eq!(outbox.bytes_under_way, outbox.under_way.iter().map(Chunk::len).sum::<usize>());
        assert!(self.arrived.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", self.arrived);
        assert!(
            outbox.acked <= outbox.sent && outbox.sent <= outbox.reached && outbox.reached <= outbox.last
        );
        let GivenUp { displaced, expired } = outbox.given_up();
        assert!(outbox.drop_oldest || displaced == 0);
        if self.memory == 1 {
            // What is lost was given up; what was given up is lost, or had arrived, or is not told yet.
            assert!(self.lost <= displaced + expired);
            assert!(self.gap <= self.lost);
        }
    }
}

fn run(ops: Vec<Op>, forgets: &[usize], limit: usize, drop_oldest: bool) {
    let mut model = Model::new(limit, drop_oldest);
    for (at, op) in ops.into_iter().enumerate() {
        if forgets.contains(&at) {
            model.step(Op::Forget);
        }
        model.step(op);
        model.check();
        assert!(model.outbox.bytes() <= limit.max(13_000), "one frame more than the limit at most");
    }
    for op in [Op::Up { behind: false, heard: true }, Op::Take(usize::MAX), Op::Deliver(usize::MAX), Op::Ack]
    {
        model.step(op);
        model.check();
    }
    let Model { outbox, arrived, pushed, lost, gap, memory, refused, behind, begun, .. } = &model;
    assert_eq!((outbox.bytes(), outbox.len(), outbox.acked()), (0, 0, Seq(*pushed)), "all is settled");
    assert!(limit < usize::MAX || *refused == 0);
    let arrived = arrived.len() as u64;
    if *memory == 1 && !behind {
        let before = begun.map_or(0, |first| first - 1);
        assert_eq!((arrived + lost, before + gap), (*pushed, *lost), "exact on both sides");
    } else {
        assert!(arrived + lost >= *pushed && gap <= lost, "nothing is lost in silence");
    }
}

proptest! {
    #[test]
    fn every_frame_is_delivered_once_in_order_or_counted(
        ops in ops(),
        forgets in prop_oneof![Just(vec![]), proptest::collection::vec(0usize..250, 1..4)],
        limit in prop_oneof![Just(usize::MAX), Just(20_000), Just(5_000)],
        drop_oldest: bool,
    ) {
        run(ops, &forgets, limit, drop_oldest);
    }
}
