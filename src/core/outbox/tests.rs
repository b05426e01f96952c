//! The outbox by itself: what is held, sent again, given up and counted.

use proptest::prelude::*;

use super::*;
use crate::core::frame::{
    Ahead, BroadcastHead, FrameLimits, Head, LastHead, PayloadKind, TRACE_BYTES, decode_head, encode_head,
    frame_len, trace_frame,
};
use crate::core::inbox::{Inbox, Verdict};
use crate::core::trace::TraceContext;

const LIMITS: FrameLimits = FrameLimits { max_frame_bytes: 1 << 20, max_room_bytes: 512 };

/// Runs of broadcasts have the same head, also one with attachments; in between are answers. The payload tells the
/// number.
pub(super) fn frame(number: u64, len: usize) -> (BytesMut, Bytes) {
    let payload: Bytes = [&number.to_le_bytes()[..], &vec![7; len]].concat().into();
    let mut encoded = BytesMut::new();
    if number.is_multiple_of(5) {
        encode_head(&Head::Answer { id: 1 }, payload.len(), &mut encoded).unwrap();
        return (encoded, payload);
    }
    let rooms = ["lobby", "hall", "lobby"];
    let kind = (number / 8 % 3) as usize;
    let head = BroadcastHead {
        ns: "/chat",
        kind: PayloadKind::Plain,
        flags: 0,
        rooms: smallvec![rooms[kind]],
        except: smallvec![],
        server: None,
        socket: None,
        attachments: if kind == 2 { smallvec![3, 5] } else { smallvec![] },
    };
    encode_head(&Head::Broadcast(head), payload.len(), &mut encoded).unwrap();
    (encoded, payload)
}

fn push(outbox: &mut Outbox, number: u64, len: usize) -> Result<Seq, DropReason> {
    let (head, payload) = frame(number, len);
    outbox.push(&head, &payload, 0)
}

/// What a peer reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Item {
    Frame(u64),
    Start(u64),
}

fn numbers(chunk: &[Bytes]) -> Vec<u64> {
    let number = |item| match item {
        Item::Frame(number) => number,
        other => panic!("{other:?}"),
    };
    items(chunk).into_iter().map(number).collect()
}

/// The context that a frame may have been pushed with.
pub(super) fn context(number: u64) -> TraceContext {
    TraceContext::new([7; 16], number.to_be_bytes(), 1).unwrap()
}

/// The numbers in the frames of a chunk, which have the heads and the payloads that were pushed.
pub(super) fn items(chunk: &[Bytes]) -> Vec<Item> {
    traced(chunk).into_iter().map(|(item, _)| item).collect()
}

/// As [`items`], with whether each has its context, which is that of no other.
pub(super) fn traced(chunk: &[Bytes]) -> Vec<(Item, bool)> {
    let (wire, mut at) = (chunk.concat(), 0);
    let (mut last, mut found, mut ahead) = (LastHead::default(), Vec::new(), Ahead::default());
    while let Some(length) = frame_len(&wire[at..], &LIMITS).unwrap() {
        let range = at + LENGTH_BYTES..at + LENGTH_BYTES + length;
        at = range.end;
        let (head, payload_at) = match last.read(&wire, range.clone(), &LIMITS).unwrap() {
            Some(message) => (Head::Broadcast(message.head.clone()), message.payload_at),
            None => decode_head(&wire[range.clone()], &LIMITS).unwrap(),
        };
        let trace = ahead.read(&head).unwrap();
        match head {
            Head::Trace(_) => continue,
            Head::Start { first } => {
                found.push((Item::Start(first), false));
                continue;
            }
            _ => {}
        }
        let payload = &wire[range.start + payload_at..range.end];
        let number = u64::from_le_bytes(*payload.first_chunk().unwrap());
        let (pushed, whole) = frame(number, payload.len() - 8);
        let pushed = [&pushed[LENGTH_BYTES..], &whole].concat();
        assert_eq!(format!("{head:?}"), format!("{:?}", decode_head(&pushed, &LIMITS).unwrap().0));
        assert_eq!(payload, whole);
        assert!(trace.is_none_or(|trace| trace == context(number)));
        found.push((Item::Frame(number), trace.is_some()));
    }
    assert!(!ahead.is_open());
    assert_eq!(at, wire.len());
    found
}

fn take(outbox: &mut Outbox) -> Vec<u64> {
    let mut found = Vec::new();
    while outbox.has_unsent() {
        // One chunk at a time: each must be readable alone.
        let mut chunk = Vec::new();
        assert_eq!(outbox.take(1, &mut chunk).bytes, chunk.iter().map(Bytes::len).sum::<usize>());
        found.extend(numbers(&chunk));
    }
    found
}

#[test]
fn frames_leave_in_order_and_stay_until_acknowledged() {
    let mut outbox = Outbox::new(1, 1 << 20);
    for (number, len) in [(1, 10), (2, 5000), (3, 10), (4, 10)] {
        assert_eq!(push(&mut outbox, number, len), Ok(Seq(number)));
    }
    assert_eq!(take(&mut outbox), [1, 2, 3, 4]);
    assert!(!outbox.has_unsent());
    assert_eq!(outbox.len(), 4);
    outbox.ack(Seq(3));
    assert_eq!(outbox.len(), 2, "the chunk of 3 and 4 is held until 4 is acknowledged");
    outbox.ack(Seq(4));
    assert_eq!((outbox.len(), outbox.bytes()), (0, 0));
}

#[test]
fn the_newest_frame_is_dropped_at_the_limit() {
    let mut outbox = Outbox::new(1, 100);
    assert_eq!(push(&mut outbox, 1, 200), Ok(Seq(1)), "an empty outbox takes any frame");
    assert_eq!(push(&mut outbox, 2, 1), Err(DropReason::QueueFull));
    take(&mut outbox);
    outbox.ack(Seq(1));
    assert_eq!(push(&mut outbox, 2, 1), Ok(Seq(2)));
}

#[test]
fn a_resume_in_the_middle_of_a_chunk_sends_the_rest() {
    let mut outbox = Outbox::new(9, 1 << 20);
    for number in 1..=5 {
        push(&mut outbox, number, 10).unwrap();
    }
    assert_eq!(take(&mut outbox), [1, 2, 3, 4, 5]);
    let resumed = outbox.resume(&Resume { epoch: 0, received: Some((9, 2)) });
    assert_eq!(resumed, Resumed { first: Seq(3), lost: 0 });
    push(&mut outbox, 6, 10).unwrap();
    assert_eq!(take(&mut outbox), [3, 4, 5, 6]);
}

#[test]
fn a_head_is_written_once_a_buffer() {
    let mut outbox = Outbox::new(9, 1 << 20);
    let (head, payload) = frame(4, 10);
    for _ in 0..3 {
        outbox.push(&head, &payload, 0).unwrap();
    }
    let again = LENGTH_BYTES + 1 + payload.len();
    assert_eq!(outbox.bytes(), head.len() + payload.len() + 2 * again);
    assert_eq!(take(&mut outbox), [4, 4, 4]);
    outbox.push(&head, &payload, 0).unwrap();
    assert_eq!(outbox.bytes(), 2 * (head.len() + payload.len() + again), "the next buffer has its own");
    // What is left begins with a whole head, and again when more is cut.
    for (applied, left) in [(1, 3), (2, 2)] {
        outbox.resume(&Resume { epoch: 0, received: Some((9, applied)) });
        assert_eq!(take(&mut outbox), vec![4; left]);
    }
    assert_eq!(outbox.bytes(), 2 * (head.len() + payload.len()));
}

#[test]
fn a_broadcast_that_is_left_behind_another_frame_gets_its_head() {
    let mut outbox = Outbox::new(9, 1 << 20);
    for number in [4, 5, 5, 4, 4] {
        push(&mut outbox, number, 10).unwrap();
    }
    for applied in 1..5 {
        outbox.take(usize::MAX, &mut Vec::new());
        let resumed = outbox.resume(&Resume { epoch: 0, received: Some((9, applied)) });
        assert_eq!(resumed, Resumed { first: Seq(applied + 1), lost: 0 });
        assert_eq!(take(&mut outbox), [4, 5, 5, 4, 4][applied as usize..]);
    }
}

#[test]
fn what_a_forgetful_peer_may_have_had_is_lost_not_repeated() {
    let mut outbox = Outbox::new(9, 1 << 20);
    for number in 1..=3 {
        push(&mut outbox, number, 10).unwrap();
    }
    take(&mut outbox);
    push(&mut outbox, 4, 10).unwrap();
    let resumed = outbox.resume(&Resume { epoch: 0, received: Some((8, 1)) });
    assert_eq!(resumed, Resumed { first: Seq(4), lost: 3 });
    assert_eq!(take(&mut outbox), [4]);
}

#[test]
fn old_frames_expire_and_are_a_gap() {
    let mut outbox = Outbox::new(9, 1 << 20);
    let (head, payload) = frame(1, 10);
    outbox.push(&head, &payload, 100).unwrap();
    take(&mut outbox);
    let (head, payload) = frame(2, 10);
    outbox.push(&head, &payload, 5000).unwrap();
    assert_eq!(outbox.expire(3000, 1000), 1);
    let resumed = outbox.resume(&Resume { epoch: 0, received: Some((9, 0)) });
    assert_eq!(resumed, Resumed { first: Seq(2), lost: 1 });
    assert_eq!(take(&mut outbox), [2]);
}

#[test]
fn a_link_that_comes_back_within_the_window_loses_nothing_however_often() {
    let mut outbox = Outbox::new(9, 1 << 20);
    outbox.resume(&Resume { epoch: 5, received: None });
    push_at(&mut outbox, 1, 1_000);
    assert_eq!(take(&mut outbox), [1]);
    // Each break is shorter than the window, both together are longer, and nothing was acknowledged in between.
    for (ended, back) in [(2_000, 13_000), (14_000, 25_000)] {
        outbox.link_ended(ended);
        // A link that ends before a resume does not count.
        outbox.link_ended(ended + 5_000);
        assert_eq!(outbox.expire(back, 15_000), 0);
        let resumed = outbox.resume(&Resume { epoch: 5, received: Some((9, 0)) });
        assert_eq!(resumed, Resumed { first: Seq(1), lost: 0 });
        assert_eq!(take(&mut outbox), [1]);
        assert_eq!(outbox.expire(back + 500, 15_000), 0, "a link stands");
    }
    // The next one is longer: what was pushed before the window goes, the rest stays.
    outbox.link_ended(26_000);
    push_at(&mut outbox, 2, 27_000);
    assert_eq!(outbox.expire(40_999, 15_000), 0);
    assert_eq!(outbox.expire(41_000, 15_000), 1);
    let resumed = outbox.resume(&Resume { epoch: 5, received: Some((9, 0)) });
    assert_eq!(resumed, Resumed { first: Seq(2), lost: 1 });
}

#[test]
fn a_loss_is_counted_once_however_often_the_link_comes_up() {
    let mut outbox = Outbox::new(9, 1 << 20);
    for number in 1..=3 {
        push(&mut outbox, number, 10).unwrap();
    }
    take(&mut outbox);
    outbox.expire(u64::MAX, 0);
    let theirs = Resume { epoch: 5, received: Some((9, 0)) };
    assert_eq!(outbox.resume(&theirs), Resumed { first: Seq(4), lost: 3 });
    // That link broke before the peer heard of the loss.
    assert_eq!(outbox.resume(&theirs), Resumed { first: Seq(4), lost: 0 });
    assert_eq!(outbox.clear(), 0);
}

#[test]
fn a_first_link_that_breaks_before_it_began_loses_nothing() {
    let mut outbox = Outbox::new(9, 1 << 20);
    let theirs = Resume { epoch: 5, received: None };
    assert_eq!(outbox.resume(&theirs), Resumed { first: Seq(1), lost: 0 });
    push(&mut outbox, 1, 10).unwrap();
    assert_eq!(take(&mut outbox), [1]);
    assert_eq!(outbox.resume(&theirs), Resumed { first: Seq(1), lost: 0 });
    assert_eq!(take(&mut outbox), [1]);
    // Another memory: a run of the peer that was given up and found again. It may have had the first.
    assert_eq!(outbox.resume(&Resume { epoch: 6, ..theirs }), Resumed { first: Seq(2), lost: 1 });
}

#[test]
fn another_node_gets_what_the_one_before_did_not() {
    for untouched in [false, true] {
        let mut outbox = Outbox::new(9, 1 << 20);
        outbox.resume(&Resume { epoch: 5, received: None });
        for number in 1..=4 {
            push(&mut outbox, number, 10).unwrap();
        }
        assert_eq!(take(&mut outbox), [1, 2, 3, 4]);
        outbox.ack(Seq(2));
        push(&mut outbox, 5, 10).unwrap();
        assert_eq!(outbox.move_to(10, untouched), if untouched { 0 } else { 2 });
        assert_eq!((outbox.epoch(), outbox.under_way()), (10, 0));
        let first = if untouched { 3 } else { 5 };
        let resumed = outbox.resume(&Resume { epoch: 6, received: None });
        assert_eq!(resumed, Resumed { first: Seq(first), lost: 0 });
        assert_eq!(take(&mut outbox), (first..=5).collect::<Vec<_>>());
        // Back to the first node, which remembers the epoch before: it has nothing of this one.
        outbox.ack(Seq(5));
        push(&mut outbox, 6, 10).unwrap();
        assert_eq!(outbox.move_to(11, false), 0);
        let resumed = outbox.resume(&Resume { epoch: 5, received: Some((9, 4)) });
        assert_eq!(resumed, Resumed { first: Seq(6), lost: 0 });
        assert_eq!(take(&mut outbox), [6]);
        outbox.ack(Seq(6));
        assert_eq!(outbox.bytes(), 0);
    }
}

fn push_traced(outbox: &mut Outbox, number: u64, len: usize) {
    let (head, payload) = frame(number, len);
    outbox.push_at(Some(&trace_frame(&context(number))), &head, &payload, || 0).unwrap();
}

/// What a new link is sent, each with whether it has its context.
fn take_traced(outbox: &mut Outbox) -> Vec<(u64, bool)> {
    let mut out = Vec::new();
    outbox.take(usize::MAX, &mut out);
    let number = |(item, traced)| match item {
        Item::Frame(number) => (number, traced),
        other => panic!("{other:?}"),
    };
    traced(&out).into_iter().map(number).collect()
}

/// Small and large frames, some with a context: each keeps its own, also when it is sent again from any place.
#[test]
fn a_trace_context_goes_with_its_frame() {
    for applied in 0..=6 {
        let mut outbox = Outbox::new(1, usize::MAX);
        push_traced(&mut outbox, 1, 10);
        assert_eq!(take_traced(&mut outbox), [(1, false)], "nobody said that the peer reads it");
        outbox.set_traces(true);
        push(&mut outbox, 2, 10).unwrap();
        push_traced(&mut outbox, 3, 10);
        push_traced(&mut outbox, 4, INLINE_BYTES);
        push_traced(&mut outbox, 5, 10);
        push_traced(&mut outbox, 6, 10);
        let bytes: usize = (1..=6)
            .map(|n| frame(n, if n == 4 { INLINE_BYTES } else { 10 }))
            .map(|(head, payload)| head.len() + payload.len())
            .sum();
        // A head that is that of the frame before is one byte; frame 5 has another one in between.
        let again = frame(3, 10).0.len() - LENGTH_BYTES - 1;
        assert_eq!(outbox.bytes(), bytes + 4 * TRACE_BYTES - again, "they count");
        let all = [(2, false), (3, true), (4, true), (5, true), (6, true)];
        assert_eq!(take_traced(&mut outbox), all);
        outbox.link_ended(0);
        outbox.resume(&Resume { epoch: 9, received: Some((1, applied)) });
        let left = || std::iter::once((1, false)).chain(all).filter(|(number, _)| *number > applied);
        assert!(take_traced(&mut outbox).into_iter().eq(left()), "after {applied}");
    }
}

/// An emitter may move to a node that does not know them.
#[test]
fn contexts_are_taken_out_for_a_peer_that_does_not_read_them() {
    let mut outbox = Outbox::new(1, usize::MAX);
    outbox.set_traces(true);
    let lens = [10, 10, INLINE_BYTES, 10, 10];
    for (number, len) in (1..).zip(lens) {
        push_traced(&mut outbox, number, len);
        if number == 2 {
            assert_eq!(take_traced(&mut outbox), [(1, true), (2, true)]);
        }
    }
    outbox.link_ended(0);
    let before = outbox.bytes();
    outbox.set_traces(false);
    assert_eq!(outbox.bytes(), before - 5 * TRACE_BYTES);
    push_traced(&mut outbox, 6, 10);
    outbox.resume(&Resume { epoch: 9, received: Some((1, 0)) });
    let all: Vec<_> = (1..=6).map(|number| (number, false)).collect();
    assert_eq!(take_traced(&mut outbox), all);
    outbox.ack(Seq(6));
    assert!(outbox.is_empty());
}

fn take_items(outbox: &mut Outbox) -> (Vec<Item>, u64) {
    let mut out = Vec::new();
    let taken = outbox.take(usize::MAX, &mut out);
    (items(&out), taken.lost)
}

#[test]
fn the_oldest_unsent_frames_make_room_and_the_peer_is_told() {
    use Item::{Frame, Start};
    let mut outbox = Outbox::new(9, 10_000).dropping_oldest(true);
    outbox.resume(&Resume { epoch: 5, received: None });
    push(&mut outbox, 1, 3000).unwrap();
    assert_eq!(take_items(&mut outbox), (vec![Frame(1)], 0));
    for number in 2..=6 {
        assert_eq!(push(&mut outbox, number, 3000), Ok(Seq(number)));
    }
    assert_eq!((outbox.len(), outbox.given_up().displaced), (3, 3), "what was sent stays");
    assert_eq!(push(&mut outbox, 7, 9000), Err(DropReason::QueueFull), "all that may go is not enough");
    assert_eq!((outbox.len(), outbox.given_up().displaced), (3, 3), "so nothing goes");
    assert_eq!(take_items(&mut outbox), (vec![Start(5), Frame(5), Frame(6)], 3));
    // The same over the next link, and counted once. Without a link what was sent goes, too.
    outbox.link_ended(0);
    assert_eq!(
        outbox.resume(&Resume { epoch: 5, received: Some((9, 1)) }),
        Resumed { first: Seq(5), lost: 0 }
    );
    assert_eq!(take_items(&mut outbox), (vec![Frame(5), Frame(6)], 0));
    outbox.link_ended(0);
    assert_eq!(push(&mut outbox, 7, 6000), Ok(Seq(7)));
    assert_eq!((outbox.len(), outbox.given_up().displaced), (2, 4));
    let resumed = outbox.resume(&Resume { epoch: 5, received: Some((9, 5)) });
    assert_eq!(resumed, Resumed { first: Seq(6), lost: 0 }, "the peer had it");
}

#[test]
fn small_frames_make_room_together() {
    let mut outbox = Outbox::new(9, 40_000).dropping_oldest(true);
    for number in 1..=2000 {
        assert_eq!(push(&mut outbox, number, 100), Ok(Seq(number)));
    }
    let held = outbox.len();
    assert!(outbox.bytes() > 20_000 && outbox.bytes() <= 40_000, "{}", outbox.bytes());
    assert_eq!(outbox.given_up().displaced, 2000 - held);
    let resumed = outbox.resume(&Resume { epoch: 5, received: None });
    assert_eq!(resumed, Resumed { first: Seq(2001 - held), lost: 2000 - held });
    assert_eq!(take(&mut outbox), (2001 - held..=2000).collect::<Vec<_>>());
}

#[test]
fn what_waits_too_long_for_a_peer_that_does_not_read_is_given_up() {
    use Item::{Frame, Start};
    let mut outbox = Outbox::new(9, 1 << 20);
    outbox.resume(&Resume { epoch: 5, received: None });
    push_at(&mut outbox, 1, 100);
    assert_eq!(take_items(&mut outbox), (vec![Frame(1)], 0));
    push_at(&mut outbox, 2, 200);
    assert_eq!(outbox.expire_unsent(150), 0);
    push_at(&mut outbox, 3, 300);
    assert_eq!(outbox.expire_unsent(250), 1, "frames that gathered at another time stay");
    assert_eq!(outbox.expire_unsent(350), 1);
    assert!(outbox.has_unsent(), "the peer is told at once");
    assert_eq!(take_items(&mut outbox), (vec![Start(4)], 2));
    assert!(!outbox.has_unsent());
    outbox.ack(Seq(3));
    assert_eq!((outbox.acked(), outbox.bytes(), outbox.under_way()), (Seq(3), 0, 0));
    assert_eq!(outbox.given_up(), GivenUp { displaced: 0, expired: 2 });
}

fn push_at(outbox: &mut Outbox, number: u64, now_ms: u64) {
    let (head, payload) = frame(number, 10);
    outbox.push(&head, &payload, now_ms).unwrap();
}

#[derive(Debug, Clone)]
enum Op {
    Push(usize),
    Deliver(usize),
    Ack,
    /// The link breaks and comes up again; the peer hears how it begins, or the link breaks before that.
    Break(bool),
    /// As many of the oldest frames expire while there is no link.
    Expire(u64),
    Forget,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        4 => prop_oneof![1usize..40, 2000usize..3000].prop_map(Op::Push),
        3 => (0usize..20).prop_map(Op::Deliver),
        2 => Just(Op::Ack),
        1 => any::<bool>().prop_map(Op::Break),
        1 => (0u64..10).prop_map(Op::Expire),
        1 => Just(Op::Forget),
    ];
    proptest::collection::vec(op, 1..200)
}

proptest! {
    /// A link that breaks anywhere, any number of times: every frame arrives once, in order, or is counted as lost
    /// by both sides.
    #[test]
    fn broken_links_neither_lose_nor_repeat(ops in ops()) {
        let mut outbox = Outbox::new(7, usize::MAX);
        let mut inbox = Inbox::new();
        // Which memory the peer has, and whether the link that is up has begun for it.
        let (mut memory, mut begun) = (1, false);
        outbox.resume(&inbox.resume(memory));
        let (mut pushed, mut arrived, mut lost, mut gap) = (0u64, Vec::new(), 0u64, 0u64);
        let mut wire: VecDeque<u64> = VecDeque::new();
        let mut expired = 0;
        for op in ops.into_iter().chain([Op::Break(true), Op::Deliver(usize::MAX)]) {
            match op {
                Op::Push(len) => {
                    pushed += 1;
                    let (head, payload) = frame(pushed, len);
                    prop_assert_eq!(outbox.push(&head, &payload, pushed), Ok(Seq(pushed)));
                }
                Op::Deliver(count) => {
                    wire.extend(take(&mut outbox));
                    for number in wire.drain(..count.min(wire.len())).filter(|_| begun) {
                        match inbox.accept() {
                            Verdict::Deliver => arrived.push(number),
                            Verdict::Duplicate => {}
                        }
                    }
                }
                Op::Ack => outbox.ack(inbox.received()),
                Op::Break(_) | Op::Forget | Op::Expire(_) => {
                    wire.clear();
                    if let Op::Expire(count) = op {
                        outbox.link_ended(0);
                        expired += outbox.expire((pushed + 1).saturating_sub(outbox.len()) + count, 0);
                    }
                    if matches!(op, Op::Forget) {
                        inbox = Inbox::new();
                        memory += 1;
                    }
                    let resumed = outbox.resume(&inbox.resume(memory));
                    lost += resumed.lost;
                    begun = !matches!(op, Op::Break(false));
                    if begun {
                        gap += inbox.start(7, resumed.first).gap;
                    }
                }
            }
            prop_assert!(outbox.len() <= pushed);
            let chunks = || outbox.under_way.iter().chain(&outbox.waiting);
            let held = chunks().map(Chunk::len).sum::<usize>() + outbox.open.len();
            prop_assert_eq!(outbox.bytes(), held);
        }
        prop_assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "order or duplicate: {:?}", arrived);
        prop_assert!(arrived.len() as u64 + lost >= pushed, "silent loss");
        prop_assert!(gap <= lost);
        prop_assert!(memory > 1 || expired > 0 || (lost == 0 && arrived.len() as u64 == pushed), "lost {} for a break", lost);
        outbox.ack(Seq(pushed));
        prop_assert_eq!(outbox.bytes(), 0);
    }
}
