//! The rules one by one, then random histories against a model that reads the whole history each time.

use std::collections::HashMap;

use proptest::prelude::*;

use super::MemberState::{Dead, Leaving, Live, Suspect};
use super::*;

const LINGER: u64 = 60_000;

fn id(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn at(port: u16) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 1], port))
}

fn members() -> Members {
    Members::new(id("me"), Incarnation(5), MembersConfig::default())
}

fn said(name: &str, incarnation: u64, port: u16, alive: bool) -> Gossiped {
    Gossiped { id: id(name), incarnation: Incarnation(incarnation), addr: at(port), alive, leaving: false }
}

fn up(members: &mut Members, name: &str, incarnation: u64, port: u16, now_ms: u64) -> Vec<MemberChange> {
    members.link_up(id(name), Incarnation(incarnation), at(port), now_ms)
}

fn down(members: &mut Members, name: &str, incarnation: u64, now_ms: u64) -> Vec<MemberChange> {
    members.link_down(&id(name), Incarnation(incarnation), now_ms)
}

fn state(members: &Members, name: &str) -> Option<MemberState> {
    members.get(&id(name)).map(|member| member.state)
}

fn dialled(members: &Members) -> Vec<String> {
    members.candidates().into_iter().map(|(id, incarnation, _)| format!("{id}@{incarnation}")).collect()
}

#[test]
fn who_is_quiet_is_suspected_until_it_is_heard_or_lost() {
    let mut members = members();
    let quiet =
        |members: &mut Members, run, quiet| members.link_quiet(&id("a"), Incarnation(run), quiet, 10).len();
    members.gossip(&[said("a", 1, 1, true)], 0);
    up(&mut members, "a", 1, 1, 0);
    assert_eq!(quiet(&mut members, 2, true), 0, "another run");
    assert_eq!((quiet(&mut members, 1, true), state(&members, "a")), (1, Some(Suspect)));
    assert_eq!(quiet(&mut members, 1, true), 0, "known");
    // The detector does not make it worse: the link may come back to life.
    members.gossip(&[said("a", 1, 1, false)], 20);
    assert_eq!(state(&members, "a"), Some(Suspect));
    members.gossip(&[said("a", 1, 1, true)], 30);
    assert_eq!((quiet(&mut members, 1, false), state(&members, "a")), (1, Some(Live)));
    quiet(&mut members, 1, true);
    down(&mut members, "a", 1, 40);
    assert_eq!((quiet(&mut members, 1, false), state(&members, "a")), (0, Some(Suspect)), "it has no link");
    up(&mut members, "a", 1, 1, 50);
    assert_eq!(state(&members, "a"), Some(Live), "a new link is not quiet");
}

#[test]
fn a_rumour_is_a_candidate_and_a_link_makes_it_a_member() {
    let mut members = members();
    assert_eq!(members.gossip(&[said("a", 1, 1, false)], 0), []);
    assert_eq!((members.iter().count(), dialled(&members)), (0, vec!["a@1".to_owned()]));
    let changes = up(&mut members, "a", 1, 1, 10);
    assert!(
        matches!(&changes[..], [MemberChange::Joined(m)] if m.state == Live && m.linked && m.since_ms == 10)
    );
    assert!(dialled(&members).is_empty());
    // The detector has not had samples enough: that is not "gone".
    assert_eq!(members.gossip(&[said("a", 1, 1, false)], 20), []);
    assert_eq!(members.gossip(&[], 30), []);
    // A rumour that ends leaves nothing behind.
    members.gossip(&[said("b", 1, 2, false)], 40);
    members.gossip(&[], 50);
    assert!(dialled(&members).is_empty());
}

#[test]
fn one_suspects_and_two_evict() {
    let mut members = members();
    members.gossip(&[said("a", 1, 1, true)], 0);
    assert_eq!(state(&members, "a"), Some(Live));
    up(&mut members, "a", 1, 1, 1);
    let changes = members.gossip(&[said("a", 1, 1, false)], 2);
    assert!(
        matches!(&changes[..], [MemberChange::StateChanged { member, was: Live }] if member.state == Suspect)
    );
    members.gossip(&[said("a", 1, 1, true)], 3);
    assert_eq!(state(&members, "a"), Some(Live));
    down(&mut members, "a", 1, 4);
    assert_eq!(state(&members, "a"), Some(Suspect));
    members.gossip(&[said("a", 1, 1, false)], 5);
    assert_eq!((state(&members, "a"), dialled(&members)), (Some(Dead), vec!["a@1".to_owned()]));
    // A link that comes back is evidence enough while the detector collects new samples.
    up(&mut members, "a", 1, 1, 6);
    members.gossip(&[said("a", 1, 1, false)], 7);
    assert_eq!(state(&members, "a"), Some(Live));
}

#[test]
fn the_dead_are_forgotten_and_may_come_back() {
    let mut members = members();
    up(&mut members, "a", 1, 1, 0);
    members.gossip(&[said("a", 1, 1, true)], 0);
    members.gossip(&[said("a", 1, 1, false)], 0);
    down(&mut members, "a", 1, 100);
    assert_eq!(members.tick(100 + LINGER - 1), []);
    let changes = members.tick(100 + LINGER);
    assert!(matches!(&changes[..], [MemberChange::Left(m)] if m.state == Dead && m.since_ms == 100));
    assert_eq!(members.gossip(&[said("a", 1, 1, false)], LINGER + 200), []);
    assert!(dialled(&members).is_empty(), "a mere rumour of one forgotten");
    let changes = members.gossip(&[said("a", 1, 1, true)], LINGER + 300);
    assert!(matches!(&changes[..], [MemberChange::Joined(m)] if m.state == Live && !m.linked));
    assert_eq!(dialled(&members), ["a@1"]);
}

#[test]
fn a_member_that_only_ever_had_a_link_does_not_stay_suspect() {
    let mut members = members();
    up(&mut members, "a", 1, 1, 0);
    down(&mut members, "a", 1, 1_000);
    assert_eq!(members.tick(10_999), []);
    assert_eq!(state(&members, "a"), Some(Suspect));
    members.tick(11_000);
    assert_eq!(state(&members, "a"), Some(Dead));
    members.tick(11_000 + LINGER);
    assert_eq!(state(&members, "a"), None);
}

#[test]
fn leaving_wins_until_dead() {
    let mut members = members();
    up(&mut members, "a", 1, 1, 0);
    let leaving = |alive| [Gossiped { leaving: true, ..said("a", 1, 1, alive) }];
    members.gossip(&leaving(true), 1);
    assert_eq!(state(&members, "a"), Some(Leaving));
    assert_eq!(down(&mut members, "a", 1, 2), []);
    let changes = members.gossip(&leaving(false), 3);
    let [MemberChange::StateChanged { .. }, MemberChange::Left(left)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(left.state, Dead, "who left on purpose is not waited for");
    assert!(dialled(&members).is_empty());
}

#[test]
fn a_goodbye_counts_at_once_whatever_gossip_says() {
    let mut members = members();
    up(&mut members, "a", 1, 1, 0);
    members.gossip(&[said("a", 1, 1, true)], 1);
    let changes = members.said_goodbye(&id("a"), Incarnation(1), 2);
    assert!(matches!(changes.last(), Some(MemberChange::Left(_))), "{changes:?}");
    assert_eq!(members.gossip(&[said("a", 1, 1, true)], 3), [], "the detector is late");
    assert!(dialled(&members).is_empty());
    let changes = up(&mut members, "a", 2, 1, 4);
    assert!(matches!(&changes[..], [MemberChange::Joined(m)] if m.incarnation == Incarnation(2)));
}

#[test]
fn the_newest_incarnation_replaces_the_older_ones() {
    let mut members = members();
    up(&mut members, "a", 2, 1, 0);
    assert_eq!(up(&mut members, "a", 1, 9, 1), []);
    assert_eq!(members.gossip(&[said("a", 1, 9, true), said("a", 2, 1, true)], 1), []);
    assert!(members.is_stale(&id("a"), Incarnation(1)) && !members.is_stale(&id("a"), Incarnation(2)));
    let changes = up(&mut members, "a", 3, 4, 2);
    let [MemberChange::Restarted { old, new }] = &changes[..] else { panic!("{changes:?}") };
    assert_eq!((old.incarnation.0, old.addr, new.incarnation.0, new.addr), (2, at(1), 3, at(4)));
    assert_eq!(down(&mut members, "a", 2, 3), [], "the old link ends later");
    assert_eq!(members.gossip(&[said("a", 2, 1, true)], 4), [], "gossip is behind");

    // Only rumoured: the old run is over at once, the new one is listed when it shows itself.
    let changes = members.gossip(&[said("a", 4, 5, false), said("a", 3, 4, true)], 5);
    assert!(matches!(&changes[..], [MemberChange::StateChanged { member, .. }] if member.state == Dead));
    assert_eq!(dialled(&members), ["a@4"]);
    assert_eq!(down(&mut members, "a", 3, 6), []);
    let changes = up(&mut members, "a", 4, 5, 7);
    assert!(matches!(&changes[..], [MemberChange::Restarted { old, new }]
        if old.incarnation.0 == 3 && old.state == Dead && new.state == Live));
}

#[test]
fn addresses_move_with_gossip_unless_a_link_knows_better() {
    let mut members = members();
    members.gossip(&[said("a", 1, 1, true)], 0);
    let changes = members.gossip(&[said("a", 1, 2, true)], 1);
    assert!(
        matches!(&changes[..], [MemberChange::Moved { member, was }] if *was == at(1) && member.addr == at(2))
    );
    up(&mut members, "a", 1, 3, 2);
    assert_eq!(members.gossip(&[said("a", 1, 2, true)], 3), []);
    // One run under two addresses: the one in use counts, whatever the order.
    down(&mut members, "a", 1, 4);
    assert_eq!(members.gossip(&[said("a", 1, 2, true), said("a", 1, 3, true), said("a", 1, 1, true)], 5), []);
}

#[test]
fn a_reused_address_is_no_longer_dialled_for_the_one_who_had_it() {
    let mut members = members();
    members.gossip(&[said("a", 1, 1, true), said("c", 1, 3, true)], 0);
    up(&mut members, "a", 1, 1, 0);
    down(&mut members, "a", 1, 1);
    assert_eq!(dialled(&members), ["a@1", "c@1"]);
    up(&mut members, "b", 1, 1, 2);
    assert_eq!(dialled(&members), ["c@1"]);
}

#[test]
fn another_process_under_our_name_is_told() {
    let mut members = members();
    members.gossip(&[said("me", 4, 1, true), said("me", 5, 1, true)], 0);
    assert_eq!(members.conflict(), None);
    members.gossip(&[said("me", 9, 1, false)], 0);
    assert_eq!(members.conflict(), None, "it has ended, or does not live yet");
    members.own_run(Incarnation(7), None);
    members.gossip(&[said("me", 7, 1, true)], 0);
    assert_eq!(up(&mut members, "me", 6, 2, 0), []);
    let conflict = members.conflict().unwrap();
    assert_eq!(*conflict, Conflict { incarnation: Incarnation(7), addr: Some(at(1)) });
    let reason = conflict.reason(&id("me"), Incarnation(5));
    assert!(
        reason.contains("the node id me ") && reason.contains("incarnation 7 at 10.0.0.1:1, this one is 5"),
        "{reason}"
    );
    assert_eq!((members.iter().count(), dialled(&members).len()), (0, 0));
    members.own_accepted();
    assert_eq!(members.conflict(), None);
}

#[test]
fn the_newest_run_of_an_id_is_known_though_it_is_a_rumour() {
    let mut members = members();
    up(&mut members, "a", 3, 1, 0);
    assert_eq!(members.newest(&id("a")), Some(Incarnation(3)));
    members.gossip(&[said("a", 8, 2, false)], 1);
    assert_eq!((members.newest(&id("a")), state(&members, "a")), (Some(Incarnation(8)), Some(Dead)));
    assert_eq!((members.newest(&id("me")), members.newest(&id("b"))), (Some(Incarnation(5)), None));
}

#[derive(Clone, Debug)]
enum Step {
    View(Vec<Gossiped>),
    Up(NodeId, Incarnation, SocketAddr),
    Down(NodeId, Incarnation),
    Tick,
}

/// All that happened since an id was last unknown, and the rules read off it.
#[derive(Default)]
struct Model {
    history: Vec<(u64, Step)>,
    /// How much of the history was before the member was forgotten.
    forgotten_at: usize,
}

impl Model {
    fn newest(&self, id: &NodeId) -> Option<Incarnation> {
        let runs = |step: &Step| match step {
            Step::View(view) => view.iter().filter(|said| said.id == *id).map(|said| said.incarnation).max(),
            Step::Up(who, run, _) if who == id => Some(*run),
            _ => None,
        };
        self.history.iter().filter_map(|(_, step)| runs(step)).max()
    }

    /// (linked, state by the evidence, known to gossip)
    fn read(&self, id: &NodeId, now_ms: u64) -> Option<(bool, MemberState, bool)> {
        let newest = self.newest(id)?;
        let (mut ever_up, mut lost_ms, mut ever_alive, mut alive) = (false, None, false, false);
        let (mut known, mut leaving) = (false, false);
        for (index, (when, step)) in self.history.iter().enumerate() {
            if index == self.forgotten_at {
                (ever_up, lost_ms) = (false, None);
            }
            match step {
                Step::View(view) => {
                    let lines: Vec<_> =
                        view.iter().filter(|said| said.id == *id && said.incarnation == newest).collect();
                    known = !lines.is_empty();
                    alive = lines.iter().any(|said| said.alive);
                    ever_alive |= alive;
                    leaving = if known { lines.iter().any(|said| said.leaving) } else { leaving };
                }
                Step::Up(who, run, _) if who == id && *run == newest => {
                    (ever_up, lost_ms) = (true, None);
                    ever_alive = alive;
                }
                Step::Down(who, run) if who == id && *run == newest && ever_up => {
                    lost_ms = lost_ms.or(Some(*when));
                }
                _ => {}
            }
        }
        let linked = ever_up && lost_ms.is_none();
        let detector_gone = ever_alive && !alive;
        let long_lost = lost_ms.is_some_and(|when| now_ms - when >= 10_000) && !ever_alive;
        let alive_by = usize::from(linked) + usize::from(alive);
        let gone_by = usize::from(lost_ms.is_some()) + usize::from(detector_gone);
        let state = match (alive_by, gone_by) {
            _ if long_lost => Dead,
            (0, 1) if lost_ms.is_some() => Suspect,
            (0, _) => Dead,
            (_, 0) => Live,
            _ => Suspect,
        };
        Some((linked, if leaving && state != Dead { Leaving } else { state }, known))
    }
}

/// Applies changes to a plain list, which notices every change that is out of order, doubled or about nobody.
fn apply(list: &mut HashMap<NodeId, Member>, changes: Vec<MemberChange>) {
    for change in changes {
        match change {
            MemberChange::Joined(member) => {
                assert!(matches!(member.state, Live | Leaving));
                assert_eq!(list.insert(member.id.clone(), member), None);
            }
            MemberChange::Restarted { old, new } => {
                assert!(new.incarnation > old.incarnation && new.state != Dead);
                assert_eq!(list.insert(new.id.clone(), new).map(|m| m.incarnation), Some(old.incarnation));
            }
            MemberChange::Moved { member, was } => {
                assert_ne!(member.addr, was);
                let before = list.insert(member.id.clone(), member.clone()).unwrap();
                assert_eq!(
                    (before.addr, before.state, before.incarnation),
                    (was, member.state, member.incarnation)
                );
            }
            MemberChange::StateChanged { member, was } => {
                assert_ne!(member.state, was);
                let before = list.insert(member.id.clone(), member.clone()).unwrap();
                assert_eq!(
                    (before.addr, before.state, before.incarnation),
                    (member.addr, was, member.incarnation)
                );
            }
            MemberChange::Left(member) => {
                let before = list.remove(&member.id).unwrap();
                assert_eq!((before.state, before.incarnation), (Dead, member.incarnation));
            }
        }
    }
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let name = || prop_oneof![4 => Just("a"), 3 => Just("b"), 2 => Just("c"), 1 => Just("me")].prop_map(id);
    let run = || (1u64..4).prop_map(Incarnation);
    let line = (name(), run(), 1u16..5, any::<bool>(), prop::bool::weighted(0.1)).prop_map(
        |(id, incarnation, port, alive, leaving)| Gossiped {
            id,
            incarnation,
            addr: at(port),
            alive,
            leaving,
        },
    );
    let step = prop_oneof![
        3 => prop::collection::vec(line, 0..6).prop_map(|mut view| {
            // Gossip has one line per run and address; one run has one announcement.
            view.sort_by(|x, y| (&x.id, x.incarnation).cmp(&(&y.id, y.incarnation)));
            view.dedup_by(|x, y| x.id == y.id && x.incarnation == y.incarnation);
            Step::View(view)
        }),
        3 => (name(), run(), 1u16..5).prop_map(|(id, run, port)| Step::Up(id, run, at(port))),
        2 => (name(), run()).prop_map(|(id, run)| Step::Down(id, run)),
        2 => Just(Step::Tick),
    ];
    let pause = prop_oneof![6 => 0u64..2_000, 2 => 8_000u64..12_000, 1 => 55_000u64..65_000];
    prop::collection::vec((pause, step), 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn every_history_follows_the_rules(steps in steps()) {
        let mut members = members();
        let mut list = HashMap::new();
        let mut models: HashMap<NodeId, Model> =
            ["a", "b", "c"].into_iter().map(|name| (id(name), Model::default())).collect();
        let mut now_ms = 0;
        for (pause, step) in steps {
            now_ms += pause;
            // A tick first, as the caller makes one every second: the model has no timers.
            for (which, step) in [Step::Tick, step].into_iter().enumerate() {
                let changes = match step.clone() {
                    Step::View(view) => members.gossip(&view, now_ms),
                    Step::Up(id, run, addr) => members.link_up(id, run, addr, now_ms),
                    Step::Down(id, run) => members.link_down(&id, run, now_ms),
                    Step::Tick => members.tick(now_ms),
                };
                for model in models.values_mut() {
                    model.history.push((now_ms, step.clone()));
                }
                for change in &changes {
                    if let MemberChange::Left(member) = change {
                        let model = models.get_mut(&member.id).unwrap();
                        if model.newest(&member.id) == Some(member.incarnation) {
                            model.forgotten_at = model.history.len();
                        }
                    }
                }
                apply(&mut list, changes);
                for (id, model) in &mut models {
                    check(&members, &mut list, id, model, now_ms, which)?;
                }
                prop_assert_eq!(members.iter().count(), list.len());
            }
        }
    }
}

fn check(
    members: &Members,
    list: &mut HashMap<NodeId, Member>,
    id: &NodeId,
    model: &mut Model,
    now_ms: u64,
    which: usize,
) -> Result<(), TestCaseError> {
    let listed = members.get(id);
    let dialled = members.candidates().into_iter().find(|(who, ..)| who == id);
    if let (Some(listed), Some(mirror)) = (listed, list.get_mut(id)) {
        mirror.linked = listed.linked;
    }
    prop_assert_eq!(listed, list.get(id), "{} after part {}", id, which);
    let Some((linked, state, known)) = model.read(id, now_ms) else {
        prop_assert!(listed.is_none() && dialled.is_none());
        return Ok(());
    };
    let newest = model.newest(id).unwrap();
    if let Some((_, run, _)) = dialled {
        prop_assert!(known && !linked && run == newest);
    }
    match listed {
        Some(member) if member.incarnation == newest => {
            prop_assert_eq!((member.linked, member.state), (linked, state));
        }
        // A newer run is only rumoured: no evidence of it, or it would be listed.
        Some(member) => {
            prop_assert!(member.incarnation < newest && member.state == Dead && !linked && state == Dead);
        }
        None => prop_assert!(!linked && matches!(state, Dead)),
    }
    if listed.is_none() && !known && !linked {
        *model = Model::default();
        return Ok(());
    }
    prop_assert!(!members.is_stale(id, newest) && members.is_stale(id, Incarnation(newest.0 - 1)));
    Ok(())
}
