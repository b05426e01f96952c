//! Each rule on a history that keeps it and on one that breaks it.

use std::time::Duration;

use super::*;
use crate::harness::history::{Entry, What};

/// The runs of nodes `a` and `b`.
const A: RunKey = (0, 100);
const B: RunKey = (1, 200);

/// Writes a history, a millisecond an entry.
#[derive(Default)]
struct Scribe {
    history: History,
    at: u64,
}

impl Scribe {
    /// Both nodes run, and both members are in the room `r`, which is settled.
    fn new() -> Self {
        let mut scribe = Self::default();
        for run in [A, B] {
            scribe.start(run);
            scribe.add(run, What::Joined("r".into()));
            scribe.add(run, What::Settled { joins: 1 });
        }
        scribe
    }

    fn add(&mut self, (node, run): RunKey, what: What) -> &mut Self {
        self.at += 1;
        self.history.add(Entry { at: Duration::from_millis(self.at), node, run, what });
        self
    }

    fn start(&mut self, run: RunKey) -> &mut Self {
        self.add(run, What::Started)
    }

    fn kill(&mut self, (node, _): RunKey) -> &mut Self {
        self.add((node, 0), What::Killed)
    }

    /// `A` emits to the room, with a queue for `B`; its own member gets it.
    fn emit(&mut self, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        for number in numbers {
            self.emit_dropped(number, Vec::new());
        }
        self
    }

    fn emit_dropped(&mut self, number: u64, dropped: Vec<(String, String)>) -> &mut Self {
        let (peers, began) = (vec![("b".to_owned(), B.1)], Duration::from_millis(self.at + 1));
        self.add(A, What::Emitted { number, began, room: "r".into(), peers, dropped });
        self.deliver(A, [number])
    }

    /// A message of `A` comes to a run.
    fn deliver(&mut self, to: RunKey, numbers: impl IntoIterator<Item = u64>) -> &mut Self {
        for number in numbers {
            self.add(to, What::Delivered { from: A.0, run: A.1, number });
        }
        self
    }

    fn gap(&mut self, at: RunKey, peer: &str, frames: u64, outgoing: bool) -> &mut Self {
        self.add(at, What::Gap { peer: peer.into(), frames, outgoing })
    }

    fn wrong(&self) -> Vec<String> {
        history(&self.history, &["a".into(), "b".into()])
    }

    #[track_caller]
    fn is_right(&self) {
        assert_eq!(self.wrong(), Vec::<String>::new());
    }

    #[track_caller]
    fn breaks(&self, rule: &str) {
        let wrong = self.wrong();
        assert!(wrong.len() == 1 && wrong[0].starts_with(rule), "{rule} alone, not {wrong:?}");
    }
}

#[test]
fn what_all_get_in_order_is_right() {
    Scribe::new().emit(1..=3).deliver(B, 1..=3).is_right();
}

#[test]
fn a_message_that_comes_twice_is_found() {
    Scribe::new().emit(1..=2).deliver(B, [1, 2, 2]).breaks("duplicate");
}

#[test]
fn what_nobody_emitted_is_found() {
    Scribe::new().emit(1..=2).deliver(B, [1, 2, 3]).breaks("invented");
    let mut stranger = Scribe::new();
    stranger.add(B, What::Delivered { from: 0, run: 99, number: 1 }).breaks("invented");
    let mut junk = Scribe::new();
    junk.add(B, What::Event(format!("{}: x", crate::harness::agent::STRANGE)));
    assert_eq!(junk.wrong().len(), 1);
    // The record of the last moment of a killed process may be lost.
    Scribe::new().emit(1..=2).deliver(B, [1, 2, 3]).kill(A).is_right();
}

#[test]
fn a_room_that_was_never_joined_is_found() {
    let mut scribe = Scribe::new();
    let peers = vec![("b".to_owned(), B.1)];
    scribe.add(
        A,
        What::Emitted {
            number: 1,
            began: Duration::from_millis(scribe.at),
            room: "other".into(),
            peers,
            dropped: Vec::new(),
        },
    );
    scribe.deliver(B, [1]).breaks("invented");
}

#[test]
fn another_order_is_found() {
    Scribe::new().emit(1..=3).deliver(B, [1, 3, 2]).breaks("order");
}

#[test]
fn a_miss_is_found() {
    Scribe::new().emit(1..=3).deliver(B, [1, 3]).breaks("miss");
    // Also of the last ones, when nobody ended.
    Scribe::new().emit(1..=3).deliver(B, [1]).breaks("miss");
    Scribe::new().emit(1..=3).breaks("miss");
}

#[test]
fn the_member_of_the_emitter_gets_all() {
    let mut scribe = Scribe::new();
    scribe.add(
        A,
        What::Emitted {
            number: 1,
            began: Duration::from_millis(scribe.at),
            room: "r".into(),
            peers: Vec::new(),
            dropped: Vec::new(),
        },
    );
    scribe.breaks("miss");
}

#[test]
fn gaps_excuse_as_many_as_they_count() {
    let counted = |frames| {
        let mut scribe = Scribe::new();
        scribe.emit(1..=4).deliver(B, [1, 4]).gap(A, "b", frames, true).gap(B, "a", frames, false);
        scribe
    };
    counted(2).is_right();
    counted(1).breaks("miss");
    // The gap of the other direction, or of somebody else, excuses nothing.
    let mut other = Scribe::new();
    other.emit(1..=4).deliver(B, [1, 4]).gap(B, "a", 2, true).gap(A, "b", 2, false).breaks("miss");
    Scribe::new().emit(1..=4).deliver(B, [1, 4]).gap(A, "c", 2, true).breaks("miss");
}

#[test]
fn a_gap_that_only_one_side_knows_of_is_found() {
    let heard = || {
        let mut scribe = Scribe::new();
        scribe.emit(1..=4).deliver(B, [1, 4]).gap(B, "a", 2, false);
        scribe
    };
    heard().breaks("gap");
    heard().gap(A, "b", 1, true).breaks("gap");
    heard().gap(A, "b", 2, true).is_right();
    heard().gap(A, "b", 3, true).breaks("gap");
    // Who found the other dead may have forgotten it: the sender knows of no less than the receiver.
    let dead = |peer: &str| What::Dead { peer: peer.to_owned() };
    heard().gap(A, "b", 3, true).add(A, dead("b")).is_right();
    heard().gap(A, "b", 3, true).add(B, dead("a")).is_right();
    heard().gap(A, "b", 3, true).add(A, dead("c")).breaks("gap");
    heard().gap(A, "b", 1, true).add(A, dead("b")).breaks("gap");
    // So does a new run; and what a run counted after its last record is lost with it.
    heard().gap(A, "b", 3, true).kill(B).is_right();
    heard().kill(A).is_right();
}

#[test]
fn losses_are_found_where_there_must_be_none() {
    let ids = ["a".to_owned(), "b".to_owned()];
    assert_eq!(losses(&Scribe::new().emit(1..=3).history, &ids), Vec::<String>::new());
    let mut scribe = Scribe::new();
    scribe.gap(A, "b", 2, true).emit_dropped(7, vec![("b".to_owned(), "the queue is full".to_owned())]);
    assert_eq!(losses(&scribe.history, &ids).len(), 2);
}

#[test]
fn a_drop_excuses_its_own_message() {
    let dropped = || vec![("b".to_owned(), "the queue is full".to_owned())];
    Scribe::new().emit_dropped(1, dropped()).emit([2]).deliver(B, [2]).is_right();
    Scribe::new().emit_dropped(1, dropped()).emit([2, 3]).deliver(B, [3]).breaks("miss");
}

#[test]
fn before_a_room_is_settled_messages_may_miss() {
    let mut scribe = Scribe::default();
    scribe.start(A).start(B).add(A, What::Joined("r".into()));
    scribe.add(B, What::Joined("r".into()));
    scribe.emit([1]).is_right();
    // A question of before the join does not cover it.
    scribe.add(B, What::Settled { joins: 0 }).emit([2]).is_right();
    scribe.add(B, What::Settled { joins: 1 }).emit([3]).breaks("miss");
}

#[test]
fn who_leaves_the_room_may_miss_the_last_only() {
    let quit = || What::Quit("r".to_owned());
    Scribe::new().emit(1..=3).deliver(B, [1]).add(B, quit()).emit([4]).is_right();
    Scribe::new().emit(1..=3).deliver(B, [1, 3]).add(B, quit()).breaks("miss");
    // Who joins again does not get what was between.
    let mut scribe = Scribe::new();
    scribe.add(B, quit()).emit([1]).add(B, What::Joined("r".into())).emit([2]);
    scribe.add(B, What::Settled { joins: 2 }).emit([3]).deliver(B, [3]).is_right();
    scribe.emit([4]).breaks("miss");
}

#[test]
fn who_ends_may_miss_the_last_only() {
    Scribe::new().emit(1..=3).deliver(B, [1]).kill(B).is_right();
    Scribe::new().emit(1..=3).deliver(B, [1]).kill(A).is_right();
    Scribe::new().emit(1..=3).deliver(B, [1, 3]).kill(B).breaks("miss");
    Scribe::new().emit(1..=3).deliver(B, [1, 3]).kill(A).breaks("miss");
}

#[test]
fn who_leaves_in_order_owes_what_it_emitted_before() {
    let leaves = |scribe: &mut Scribe, missing_after: bool| {
        scribe.emit(1..=2).deliver(B, 1..=if missing_after { 2 } else { 1 });
        scribe.add((A.0, 0), What::Leaving).emit(3..=3).add((A.0, 0), What::Left);
    };
    let (mut good, mut bad) = (Scribe::new(), Scribe::new());
    leaves(&mut good, true);
    good.is_right();
    leaves(&mut bad, false);
    bad.breaks("miss");
    // Who is killed while it leaves, and who is left to a node that ends, owes nothing more.
    let mut killed = Scribe::new();
    killed.emit(1..=2).deliver(B, [1]).add((A.0, 0), What::Leaving).kill(A).is_right();
    let mut both = Scribe::new();
    leaves(&mut both, false);
    both.kill(B).is_right();
}

#[test]
fn a_history_in_numbers() {
    let mut scribe = Scribe::new();
    scribe.emit(1..=6).deliver(B, [2, 1, 5, 5, 6]).gap(A, "b", 1, true);
    let tally = tally(&scribe.history, &["a".into(), "b".into()]);
    let wanted = Tally { emitted: 6, delivered: 11, missed: 2, uncounted: 1, duplicated: 1, reordered: 1 };
    assert_eq!(tally, wanted);
    assert!(tally.is_wrong() && !Tally { missed: 1, ..Tally::default() }.is_wrong());
}

#[test]
fn what_was_checked_is_forgotten_and_the_rest_is_checked_as_before() {
    let ids = ["a".to_owned(), "b".to_owned()];
    let mut scribe = Scribe::new();
    scribe.emit(1..=2).deliver(B, 1..=2);
    scribe.add(B, What::Joined("s".into())).add(B, What::Quit("s".into())).add(B, What::Joined("s".into()));
    let at = |scribe: &Scribe| Duration::from_millis(scribe.at);
    assert!(forget(&scribe.history, &ids, at(&scribe)).is_none(), "a join is not known everywhere");
    scribe.add(B, What::Settled { joins: 3 }).add(B, What::Quit("s".into()));
    scribe.history = forget(&scribe.history, &ids, at(&scribe)).unwrap();
    assert_eq!(scribe.history.entries.len(), 4);
    // The room is settled still, and joins are counted on.
    scribe.emit(3..=4).deliver(B, 3..=4).is_right();
    scribe.add(B, What::Joined("s".into())).add(B, What::Settled { joins: 4 });
    scribe.is_right();
    scribe.emit(5..=6).deliver(B, [6]).breaks("miss");
    // A run that is over is forgotten altogether.
    scribe.kill(A);
    let left = forget(&scribe.history, &ids, at(&scribe)).unwrap();
    assert!(left.entries.iter().all(|entry| entry.node == B.0));
}

#[test]
fn a_new_run_owes_nothing_for_the_old_one() {
    let mut scribe = Scribe::new();
    let new = (B.0, 201);
    scribe.emit(1..=3).deliver(B, [1]).kill(B).start(new);
    scribe.add(new, What::Joined("r".into())).add(new, What::Settled { joins: 1 });
    // Its queue is not yet one of the emitter.
    scribe.emit([4]).is_right();
    // What the old run got must not come again to the new one: it is another run, and may get each message once.
    scribe.deliver(new, [4]).is_right();
    scribe.deliver(new, [4]).breaks("duplicate");
}

mod convergence {
    use serde_json::{Value, json};

    use super::super::*;

    /// The status of a node in a cluster of `a` and `b`, both in their runs 1.
    fn report(id: &str, peer: &str) -> Value {
        let member = |id: &str| json!({ "id": id, "incarnation": 1, "address": "", "state": "live", "linked": true, "since_ms_ago": 0 });
        let mut link = json!({
            "peer": peer, "incarnation": 1, "address": null, "state": "up", "round_trip_us": 1, "uptime_ms": 1,
            "drops": { "queue_full": 0, "too_large": 0, "not_writable": 0, "peer_gone": 0 },
        });
        for counter in LINK_COUNTERS {
            link[*counter] = json!(3);
        }
        json!({
            "schema_version": 1, "cluster": "c", "live": true, "ready": true, "draining": false,
            "node": {
                "id": id, "incarnation": 1, "version": "", "started": "", "started_unix_ms": 0, "uptime_ms": 0,
                "listen": "", "address": "", "certificate_expires": "",
            },
            "members": [member("a"), member("b")], "links": [link],
            "interest": { "version": 3, "rows": 3, "peers_known": 1, "peers_unknown": 0 },
            "discovery": [], "gossip": { "digest_nodes": 2, "digest_bytes": 100 },
            "udp": { "receive_buffer_bytes": 0, "send_buffer_bytes": 0 },
            "counters": {
                "emits": 0, "drops": 0, "delivered": 0, "no_namespace": 0, "violations": 0, "refused_busy": 0,
                "refused": 0, "dials_failed": 0, "gossip_drops": 0, "frames_sent": 0, "frames_received": 0,
            },
        })
    }

    const LINK_COUNTERS: &[&str] = &[
        "links",
        "interest_version_held",
        "interest_version_acknowledged",
        "rooms",
        "queue_frames",
        "queue_bytes",
        "frames_sent",
        "frames_received",
        "bytes_sent",
        "bytes_received",
        "interest_bytes_sent",
        "volatile_sent",
        "volatile_received",
        "duplicates",
        "gap_frames_sent",
        "gap_frames_received",
    ];

    /// What is wrong when the status of `a` is changed.
    fn wrong(change: impl FnOnce(&mut Value)) -> Vec<String> {
        let (mut a, b) = (report("a", "b"), report("b", "a"));
        change(&mut a);
        let reports = [("a", a), ("b", b)]
            .map(|(id, report)| (id.to_owned(), serde_json::from_value::<Report>(report).unwrap()));
        convergence(&reports.into())
    }

    #[test]
    fn two_nodes_that_know_each_other_are_one_cluster() {
        assert_eq!(wrong(|_| {}), Vec::<String>::new());
        // Who is dead and does not run may be listed for a while.
        let dead = json!({ "id": "c", "incarnation": 1, "address": "", "state": "dead", "linked": false, "since_ms_ago": 0 });
        assert_eq!(wrong(|a| a["members"].as_array_mut().unwrap().push(dead)), Vec::<String>::new());
    }

    #[test]
    fn everything_else_is_not() {
        for (what, change) in [
            (
                "a does not list b",
                (|a| {
                    a["members"].as_array_mut().unwrap().pop();
                }) as fn(&mut Value),
            ),
            ("a lists an old run of b", |a| a["members"][1]["incarnation"] = json!(0)),
            ("a lists b as suspect", |a| a["members"][1]["state"] = json!("suspect")),
            ("a lists b as live and not linked", |a| a["members"][1]["linked"] = json!(false)),
            ("a lists c as live", |a| {
                let mut ghost = a["members"][1].clone();
                ghost["id"] = json!("c");
                a["members"].as_array_mut().unwrap().push(ghost);
            }),
            ("a has no link to b that is up", |a| a["links"][0]["state"] = json!("syncing")),
            ("a keeps something for a run of b that is over", |a| {
                let mut old = a["links"][0].clone();
                old["incarnation"] = json!(0);
                a["links"].as_array_mut().unwrap().push(old);
            }),
            ("a is refused", |a| a["conflict"] = json!("another process uses the id")),
            ("a says that it is not live", |a| a["live"] = json!(false)),
            ("a holds version 2 of the interest of b", |a| a["links"][0]["interest_version_held"] = json!(2)),
            ("b acknowledged version 2 of a", |a| a["links"][0]["interest_version_acknowledged"] = json!(2)),
        ] {
            let wrong = wrong(change);
            assert!(wrong.len() == 1 && wrong[0].starts_with(what), "{what}: {wrong:?}");
        }
    }

    #[test]
    fn rooms_that_are_not_held_everywhere_are_found() {
        let held = |id: &str, rooms| {
            let mut report = report(id, "c");
            report["links"][0]["rooms"] = json!(rooms);
            (id.to_owned(), serde_json::from_value::<Report>(report).unwrap())
        };
        let unequal = unequal_rooms(&[held("a", 3), held("b", 4)].into());
        assert_eq!(unequal, ["of c different numbers of rooms are held: {3, 4}"]);
    }
}
