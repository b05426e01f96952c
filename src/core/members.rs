//! The members that users see: what gossip says and what the links say, made into one list and its changes.

use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;

use crate::ids::{Incarnation, NodeId};

/// How a member stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MemberState {
    /// Its link is up or gossip's failure detector calls it alive, and neither says it is gone.
    Live,
    /// Exactly one of the two says it is gone, or its link is up and quiet.
    Suspect,
    /// It announced that it is leaving, and it is not dead yet.
    Leaving,
    /// Both say it is gone, or a newer incarnation of it was heard of. Forgotten after
    /// [`MembersConfig::dead_linger_ms`]; at once when it had announced that it leaves.
    Dead,
}

/// One member: one run of another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name; no two listed members share one.
    pub id: NodeId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// Where it is dialled: what the link said while one is up, else what gossip says.
    pub addr: SocketAddr,
    /// How it stands.
    pub state: MemberState,
    /// Whether its link is up.
    pub linked: bool,
    /// When it got into `state`, on the clock of the caller, in milliseconds.
    pub since_ms: u64,
    /// Of this node itself: the other process that has its name and is newer, while one is known. Of others: none.
    pub conflict: Option<Conflict>,
}

/// One line of gossip's view: a plain copy, so that this module knows nothing of gossip.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Gossiped {
    /// The name.
    pub id: NodeId,
    /// Which run of it.
    pub incarnation: Incarnation,
    /// The address it advertises.
    pub addr: SocketAddr,
    /// Whether the failure detector calls it alive. False too before there are samples enough to say.
    pub alive: bool,
    /// Whether it announced that it is leaving.
    pub leaving: bool,
}

/// What changed. A change of only `linked` is not reported: the caller made it.
///
/// For one id the order is `Joined` first; then `Restarted`, `Moved`, `StateChanged`; `Left` last. After
/// `Left` nothing more is said of the id until it is `Joined` again. A new incarnation of a listed member is
/// `Restarted`, never `Left` and `Joined`. Changes of one input stand in the order of their ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MemberChange {
    /// A node became a member, [`MemberState::Live`] or [`MemberState::Leaving`].
    Joined(Member),
    /// A newer incarnation took the place of the old one; its state is never [`MemberState::Dead`].
    Restarted {
        /// The run that is over, as it was listed before this input.
        old: Member,
        /// The run listed now.
        new: Member,
    },
    /// The same incarnation is at another address.
    Moved {
        /// The member, with its new address and the state before any change of it.
        member: Member,
        /// The address before.
        was: SocketAddr,
    },
    /// The state is another one.
    StateChanged {
        /// The member as it is now.
        member: Member,
        /// The state before.
        was: MemberState,
    },
    /// It was dead for [`MembersConfig::dead_linger_ms`] and is forgotten.
    Left(Member),
}

/// A newer run under our own name: another process uses it, and the cluster will listen to that one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The incarnation of the other process.
    pub incarnation: Incarnation,
    /// Where it is, where that is known: who refuses this run names only the incarnation.
    pub addr: Option<SocketAddr>,
}

impl Conflict {
    /// What is wrong with the run `own` of the node `id`, and what to do, for an operator.
    pub fn reason(&self, id: &NodeId, own: Incarnation) -> String {
        let newer = self.incarnation;
        let place = self.addr.map(|addr| format!(" at {addr}")).unwrap_or_default();
        format!(
            "another process uses the node id {id} and is newer (incarnation {newer}{place}, this one is {own}): the \
             cluster listens to that one; stop one of the two, or give each node its own id; if there is no other, the \
             clock went back between two runs: this one is let in about two minutes after the end of the other"
        )
    }
}

/// How long members are kept.
#[derive(Clone, Debug)]
pub struct MembersConfig {
    /// How long a dead member stays listed, and is still dialled, in milliseconds. Default is 60,000.
    pub dead_linger_ms: u64,
    /// How long a member may be without its link when the failure detector never called it alive, in
    /// milliseconds; then it is dead. Default is 10,000.
    pub unheard_ms: u64,
    /// How long the address of a node that was linked is remembered after its last link, so that two sides of a long split
    /// that have forgotten each other meet again without a seed, in milliseconds. Default is 86,400,000 (a day). At most
    /// 256 nodes are remembered, none that said goodbye.
    pub remember_ms: u64,
    /// The shortest pause between two dials of such an address, in milliseconds; the longest is twice that. Default is
    /// 10,000. At most two such dials begin in a second. Cost: one handshake each.
    pub revisit_ms: u64,
}

impl Default for MembersConfig {
    fn default() -> Self {
        Self { dead_linger_ms: 60_000, unheard_ms: 10_000, remember_ms: 86_400_000, revisit_ms: 10_000 }
    }
}

/// The membership view of one node.
///
/// To evict, both the link and the failure detector must say so; to suspect, one is enough. "Gone" is said by
/// a link that was up and is not; by the detector, when it called the node alive and does not any more (or no
/// longer lists it). A link that never came up says nothing, but counts as gone once the detector says gone.
/// A link that comes up is fresh evidence: what the detector said before it is forgotten.
///
/// Only the newest incarnation of an id counts from the moment it is heard of, and older ones are ignored.
/// While the newer one is no more than a rumour, the member listed is still the old one, as dead.
///
/// * Inputs, each returns what it changed: [`gossip`](Self::gossip), [`link_up`](Self::link_up),
///   [`link_down`](Self::link_down), [`link_quiet`](Self::link_quiet), [`said_goodbye`](Self::said_goodbye), [`tick`](Self::tick) (about once a second). `now_ms` should not go back;
///   when it does, waits only get longer. Of the own id: [`own_run`](Self::own_run), [`own_accepted`](Self::own_accepted).
/// * Getters: [`iter`](Self::iter), [`get`](Self::get), [`candidates`](Self::candidates),
///   [`newest`](Self::newest), [`is_stale`](Self::is_stale), [`conflict`](Self::conflict).
///
/// Memory is one entry per id that gossip lists, has a link or is a member.
#[derive(Debug)]
pub struct Members {
    own_id: NodeId,
    own_incarnation: Incarnation,
    config: MembersConfig,
    nodes: BTreeMap<NodeId, Node>,
    conflict: Option<Conflict>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Never,
    Up,
    Lost { at_ms: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Detector {
    Never,
    Alive,
    Gone,
}

/// What is known of the newest incarnation of an id, and the member listed under it.
#[derive(Debug)]
struct Node {
    incarnation: Incarnation,
    addr: SocketAddr,
    /// Gossip lists it now.
    known: bool,
    detector: Detector,
    link: Link,
    /// Its link is up, and nothing came over it for longer than usual.
    quiet: bool,
    leaving: bool,
    /// It was a member and was forgotten: it is not dialled again on a mere rumour.
    forgotten: bool,
    /// It said goodbye: that it still seems alive to gossip for a moment means nothing.
    goodbye: bool,
    /// What is listed; of an older incarnation while the newest one is only a rumour.
    member: Option<Member>,
}

impl Members {
    /// An empty list for the node `own_id`, which is never listed itself.
    pub fn new(own_id: NodeId, own_incarnation: Incarnation, config: MembersConfig) -> Self {
        Self { own_id, own_incarnation, config, nodes: BTreeMap::new(), conflict: None }
    }

    /// Takes gossip's whole view. What is not in it is no longer known to gossip.
    pub fn gossip(&mut self, view: &[Gossiped], now_ms: u64) -> Vec<MemberChange> {
        let mut newest: BTreeMap<&NodeId, &Gossiped> = BTreeMap::new();
        for said in view {
            if said.id == self.own_id {
                // One that has ended stays in gossip for a while and is no rival.
                if said.alive {
                    self.own_run(said.incarnation, Some(said.addr));
                }
                continue;
            }
            let current = self.nodes.get(&said.id).map(|node| node.addr);
            let slot = newest.entry(&said.id).or_insert(said);
            if rank(said, current) > rank(slot, current) {
                *slot = said;
            }
        }
        for (id, node) in &mut self.nodes {
            if newest.get(id).is_none_or(|said| said.incarnation < node.incarnation) {
                node.unlisted();
            }
        }
        for said in newest.into_values() {
            let node =
                self.nodes.entry(said.id.clone()).or_insert_with(|| Node::new(said.incarnation, said.addr));
            node.heard(said);
        }
        self.settle_all(now_ms)
    }

    /// The link to this incarnation is up, after its hello. An older incarnation than the newest known is
    /// ignored.
    pub fn link_up(
        &mut self,
        id: NodeId,
        incarnation: Incarnation,
        addr: SocketAddr,
        now_ms: u64,
    ) -> Vec<MemberChange> {
        if id == self.own_id {
            self.own_run(incarnation, Some(addr));
            return Vec::new();
        }
        let node = self.nodes.entry(id.clone()).or_insert_with(|| Node::new(incarnation, addr));
        if incarnation < node.incarnation {
            return Vec::new();
        }
        node.renew(incarnation, addr);
        node.addr = addr;
        (node.link, node.quiet) = (Link::Up, false);
        node.goodbye = false;
        if node.detector == Detector::Gone {
            node.detector = Detector::Never;
        }
        self.settle(&id, now_ms)
    }

    /// The link to this incarnation is gone. Ignored when there was none.
    pub fn link_down(&mut self, id: &NodeId, incarnation: Incarnation, now_ms: u64) -> Vec<MemberChange> {
        match self.nodes.get_mut(id) {
            Some(node) if node.incarnation == incarnation && node.link == Link::Up => {
                node.link = Link::Lost { at_ms: now_ms };
                self.settle(id, now_ms)
            }
            _ => Vec::new(),
        }
    }

    /// Nothing came over the link of this incarnation for longer than usual, or something did again. Ignored when its link is
    /// not up.
    pub fn link_quiet(
        &mut self,
        id: &NodeId,
        incarnation: Incarnation,
        quiet: bool,
        now_ms: u64,
    ) -> Vec<MemberChange> {
        match self.nodes.get_mut(id) {
            Some(node) if node.incarnation == incarnation && node.link == Link::Up && node.quiet != quiet => {
                node.quiet = quiet;
                self.settle(id, now_ms)
            }
            _ => Vec::new(),
        }
    }

    /// This incarnation closed its link with a goodbye: it is gone at once, whatever gossip still says.
    pub fn said_goodbye(&mut self, id: &NodeId, incarnation: Incarnation, now_ms: u64) -> Vec<MemberChange> {
        match self.nodes.get_mut(id) {
            Some(node) if node.incarnation == incarnation => {
                node.link = Link::Lost { at_ms: now_ms };
                node.detector = Detector::Gone;
                (node.leaving, node.goodbye) = (true, true);
                self.settle(id, now_ms)
            }
            _ => Vec::new(),
        }
    }

    /// Time passed: forgets members that were dead for long, and gives up those that only had a link.
    pub fn tick(&mut self, now_ms: u64) -> Vec<MemberChange> {
        self.settle_all(now_ms)
    }

    /// All members in the order of their ids, dead ones included, without this node.
    pub fn iter(&self) -> impl Iterator<Item = &Member> {
        self.nodes.values().filter_map(|node| node.member.as_ref())
    }

    /// One member.
    pub fn get(&self, id: &NodeId) -> Option<&Member> {
        self.nodes.get(id)?.member.as_ref()
    }

    /// Whom to dial: the newest incarnation of everyone gossip lists who has no link, member or not, in the
    /// order of their ids. Dead members are in it until they are forgotten, so that a healed split is
    /// noticed.
    ///
    /// Not in it: who was forgotten and has shown no sign of life since; and whoever is not live at an
    /// address where a link now reaches another id (a reused pod address): dialling would reach that other
    /// node.
    pub fn candidates(&self) -> Vec<(NodeId, Incarnation, SocketAddr)> {
        let taken: HashSet<SocketAddr> =
            self.nodes.values().filter(|node| node.link == Link::Up).map(|node| node.addr).collect();
        let wanted = |node: &Node| {
            let lives = node.member.as_ref().is_some_and(|member| {
                member.incarnation == node.incarnation
                    && matches!(member.state, MemberState::Live | MemberState::Leaving)
            });
            node.known && node.link != Link::Up && !node.forgotten && (lives || !taken.contains(&node.addr))
        };
        let all = self.nodes.iter().filter(|(_, node)| wanted(node));
        all.map(|(id, node)| (id.clone(), node.incarnation, node.addr)).collect()
    }

    /// The newest incarnation of this id that was heard of, a rumour counts too; for the own id, that of this run.
    pub fn newest(&self, id: &NodeId) -> Option<Incarnation> {
        if *id == self.own_id {
            return Some(self.own_incarnation);
        }
        self.nodes.get(id).map(|node| node.incarnation)
    }

    /// Whether a newer incarnation of this id is known; for the own id, whether it is older than this run.
    pub fn is_stale(&self, id: &NodeId, incarnation: Incarnation) -> bool {
        self.newest(id).is_some_and(|newest| incarnation < newest)
    }

    /// Another process under the own id with a newer incarnation, if one is known; the newest such.
    pub fn conflict(&self) -> Option<&Conflict> {
        self.conflict.as_ref()
    }

    /// A run of the own id was heard of. Only newer ones than this one count.
    pub fn own_run(&mut self, incarnation: Incarnation, addr: Option<SocketAddr>) {
        match &mut self.conflict {
            Some(known) if known.incarnation == incarnation => known.addr = known.addr.or(addr),
            Some(known) if known.incarnation > incarnation => {}
            _ if incarnation > self.own_incarnation => self.conflict = Some(Conflict { incarnation, addr }),
            _ => {}
        }
    }

    /// Others take this run for the newest: there is no conflict any more.
    pub fn own_accepted(&mut self) {
        self.conflict = None;
    }

    fn settle_all(&mut self, now_ms: u64) -> Vec<MemberChange> {
        let mut changes = Vec::new();
        self.nodes.retain(|id, node| {
            node.settle(id, now_ms, &self.config, &mut changes);
            node.is_needed()
        });
        changes
    }

    fn settle(&mut self, id: &NodeId, now_ms: u64) -> Vec<MemberChange> {
        let mut changes = Vec::new();
        if let Some(node) = self.nodes.get_mut(id) {
            node.settle(id, now_ms, &self.config, &mut changes);
            if !node.is_needed() {
                self.nodes.remove(id);
            }
        }
        changes
    }
}

/// Which of several lines about one id counts: the newest run; of one run with several addresses the one that
/// is alive, then the one already used, then the lowest, so that the choice does not depend on the order of
/// the view.
fn rank(said: &Gossiped, current: Option<SocketAddr>) -> impl Ord {
    (said.incarnation, said.alive, Some(said.addr) == current, std::cmp::Reverse(said.addr))
}

impl Node {
    fn new(incarnation: Incarnation, addr: SocketAddr) -> Self {
        Self {
            incarnation,
            addr,
            known: false,
            detector: Detector::Never,
            link: Link::Never,
            quiet: false,
            leaving: false,
            forgotten: false,
            goodbye: false,
            member: None,
        }
    }

    /// Starts anew when the incarnation is newer; the member listed stays until it is settled.
    fn renew(&mut self, incarnation: Incarnation, addr: SocketAddr) {
        if incarnation > self.incarnation {
            *self = Self { member: self.member.take(), ..Self::new(incarnation, addr) };
        }
    }

    /// Gossip says something of this incarnation or a newer one; older ones change nothing.
    fn heard(&mut self, said: &Gossiped) {
        self.renew(said.incarnation, said.addr);
        if said.incarnation < self.incarnation {
            return;
        }
        self.known = true;
        self.leaving = said.leaving;
        // A hello over an authenticated link knows the address better than a rumour.
        if self.link != Link::Up {
            self.addr = said.addr;
        }
        if said.alive && !self.goodbye {
            self.detector = Detector::Alive;
        } else if self.detector == Detector::Alive {
            self.detector = Detector::Gone;
        }
    }

    /// Gossip no longer lists it.
    fn unlisted(&mut self) {
        self.known = false;
        if self.detector == Detector::Alive {
            self.detector = Detector::Gone;
        }
    }

    fn is_needed(&self) -> bool {
        self.known || self.link == Link::Up || self.member.is_some()
    }

    /// The state that the evidence on the newest incarnation gives, were it a member.
    fn state(&self, now_ms: u64, config: &MembersConfig) -> MemberState {
        let state = match (self.link, self.detector) {
            (Link::Up, _) if self.quiet => MemberState::Suspect,
            (Link::Up, Detector::Gone) | (Link::Lost { .. }, Detector::Alive) => MemberState::Suspect,
            (Link::Up, _) | (Link::Never, Detector::Alive) => MemberState::Live,
            (Link::Lost { at_ms }, Detector::Never) if now_ms.saturating_sub(at_ms) < config.unheard_ms => {
                MemberState::Suspect
            }
            _ => MemberState::Dead,
        };
        if self.leaving && state != MemberState::Dead { MemberState::Leaving } else { state }
    }

    /// Brings the listed member in line with the evidence and says what that changed.
    fn settle(&mut self, id: &NodeId, now_ms: u64, config: &MembersConfig, changes: &mut Vec<MemberChange>) {
        let state = self.state(now_ms, config);
        let linked = self.link == Link::Up;
        let fresh = |since_ms| Member {
            id: id.clone(),
            incarnation: self.incarnation,
            addr: self.addr,
            state,
            linked,
            since_ms,
            conflict: None,
        };
        let evidence = linked || self.detector == Detector::Alive;
        let Some(member) = &mut self.member else {
            if evidence {
                let member = fresh(now_ms);
                changes.push(MemberChange::Joined(member.clone()));
                self.member = Some(member);
                self.forgotten = false;
            }
            return;
        };
        let superseded = member.incarnation < self.incarnation;
        if superseded && evidence {
            let new = fresh(now_ms);
            let old = std::mem::replace(member, new.clone());
            changes.push(MemberChange::Restarted { old, new });
            return;
        }
        if !superseded && member.addr != self.addr {
            let was = std::mem::replace(&mut member.addr, self.addr);
            member.linked = linked;
            changes.push(MemberChange::Moved { member: member.clone(), was });
        }
        // After `renew` the link is `Never`: a superseded run has none that counts.
        member.linked = linked;
        let state = if superseded { MemberState::Dead } else { state };
        if member.state != state {
            let was = std::mem::replace(&mut member.state, state);
            member.since_ms = now_ms;
            changes.push(MemberChange::StateChanged { member: member.clone(), was });
        }
        let dead = member.state == MemberState::Dead;
        // Who left on purpose is not waited for.
        let linger_ms = if self.leaving && !superseded { 0 } else { config.dead_linger_ms };
        if dead && now_ms.saturating_sub(member.since_ms) >= linger_ms {
            // A rumoured successor was never a member itself: it may still be dialled.
            if !superseded {
                self.forgotten = true;
                self.link = Link::Never;
            }
            changes.extend(self.member.take().map(MemberChange::Left));
        }
    }
}

#[cfg(test)]
mod tests;
