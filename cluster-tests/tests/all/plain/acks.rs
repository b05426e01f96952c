//! Acknowledgements from real nodes: what ends them, and what is left.

use std::sync::Mutex;

use roomcast::AckSender;

use super::*;

/// Contract 7: who dies settles its share at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_while_it_is_asked_is_named() {
    // Long: what is kept for the dead node is kept to the end of the test.
    let setup = Setup::new("killed").config(|config| config.link.resume_window = LONG);
    let mut nodes = setup.formed(3).await;
    let handles = open(&nodes);
    let kept = Kept::default();
    let _members = [
        handles[0].connect_with_ack(|_, ack| ack.send("zero")),
        handles[1].connect_with_ack(|_, ack| ack.send("one")),
        handles[2].connect_with_ack(|_, ack| ack.send("two")),
        handles[2].connect_with_ack(kept.sink()),
    ];
    until("all are known", async || *handles[0].sockets_count().await.unwrap() == 4).await;

    let mut acks = handles[0].all().emit_with_ack("x", LONG).unwrap();
    let mut came = BTreeSet::new();
    for _ in 0..3 {
        came.insert(soon("an acknowledgement", acks.next()).await.unwrap().result.unwrap());
    }
    assert_eq!(came.into_iter().collect::<Vec<_>>(), ["one", "two", "zero"]);
    assert_eq!((acks.missing(), nodes[0].pending_requests().0), (vec![], 1));
    let dead = nodes.pop().unwrap();
    let id = dead.id().clone();
    dead.kill().await;
    assert_eq!(soon("the end, before the timeout", acks.next()).await, None);
    let missing = acks.missing();
    assert_eq!((missing.len(), &missing[0].node, missing[0].reason), (1, &id, MissingReason::Left));
    // It is known to be dead: nobody waits for it a second time.
    let mut acks = handles[0].all().emit_with_ack("y", LONG).unwrap();
    for _ in 0..2 {
        assert!(soon("an acknowledgement", acks.next()).await.is_some());
    }
    assert_eq!(soon("the end, before the timeout", acks.next()).await, None);
    assert_eq!(acks.missing(), missing);
    for node in &nodes {
        eventually("nothing is left", || node.pending_requests() == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_fails_costs_only_its_own_share() {
    let setup = Setup::new("shares").config(|config| config.link.max_frame_bytes = 100_000);
    let nodes = setup.formed(2).await;
    let handles = open(&nodes);
    let kept = Kept::default();
    let fits = Bytes::from(vec![7; 99_000]);
    let sinks = |ns: &Namespace| {
        let fits = fits.clone();
        [
            ns.connect_with_ack(|_, ack| ack.send("yes")),
            ns.connect_with_ack(kept.sink()),
            ns.connect(|_| {}),
            ns.connect_with_ack(|_, _| panic!("a bad sink")),
            ns.connect_with_ack(|_, ack| ack.send(vec![7; 100_000])),
            ns.connect_with_ack(move |_, ack| ack.send(fits.clone())),
            ns.connect_with_ack(|_, ack| drop(std::thread::spawn(move || ack.send("later")))),
        ]
    };
    let _members = [sinks(&handles[0]), sinks(&handles[1])];
    until("all are known", async || *handles[0].sockets_count().await.unwrap() == 14).await;

    // Long enough for who answers on a busy machine: only who never does runs into it.
    let mut acks = handles[0].all().emit_with_ack("x", Duration::from_secs(3)).unwrap();
    let came = all(&mut acks).await;
    assert_eq!(acks.missing(), []);
    let expected = [
        Ok(Bytes::from("yes")),
        Err(AckError::TimedOut),
        Err(AckError::Dropped),
        Err(AckError::Dropped),
        Err(AckError::TooLarge),
        Ok(fits),
        Ok(Bytes::from("later")),
    ];
    for (at, node) in nodes.iter().enumerate() {
        let shares = came.iter().filter(|((of, _), _)| of == node.name());
        let mut shares: Vec<_> = shares.map(|((_, name), (_, result))| (name, result)).collect();
        shares.sort_by_key(|(number, _)| number.parse::<u64>().unwrap_or(0));
        assert_eq!(shares.len(), expected.len(), "node {at}");
        for result in &expected {
            let same =
                |list: Vec<&Result<Bytes, AckError>>| list.into_iter().filter(|it| *it == result).count();
            assert_eq!(
                same(shares.iter().map(|(_, result)| *result).collect()),
                same(expected.iter().collect()),
                "node {at}"
            );
        }
    }
    // Too late, and for nobody.
    kept.release();
    for node in &nodes {
        eventually("nothing is left", || node.pending_requests() == (0, 0)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledgements_that_are_given_up_leave_nothing() {
    const ASKED: usize = 2_000;
    let nodes = Setup::new("given-up").formed(2).await;
    let handles = open(&nodes);
    let kept = Kept::default();
    let _members = [handles[0].connect_with_ack(kept.sink()), handles[1].connect_with_ack(kept.sink())];
    until("both are known", async || *handles[0].sockets_count().await.unwrap() == 2).await;
    let acks: Vec<Acks> = (0..ASKED).map(|_| handles[0].all().emit_with_ack("x", LONG).unwrap()).collect();
    eventually("all were asked", || kept.len() == 2 * ASKED).await;
    assert!(kept.wanted() == 2 * ASKED && nodes[0].pending_requests() == (ASKED, ASKED));
    assert_eq!(nodes[1].pending_requests(), (0, ASKED));
    drop(acks);
    for node in &nodes {
        eventually("nothing is left", || node.pending_requests() == (0, 0)).await;
    }
    eventually("the members know", || kept.wanted() == 0).await;
    // A question that is given up while it waits.
    nodes[1].gate.cut();
    let given_up = tokio::time::timeout(Duration::from_millis(50), handles[0].all().sockets()).await;
    assert!(given_up.is_err());
    assert_eq!(nodes[0].pending_requests(), (0, 0));
    // One that is not: the share of the node is missing, the other is there.
    let some = handles[0].all().timeout(Duration::from_millis(50)).sockets().await.unwrap();
    assert_eq!((some.len(), some.missing.len(), nodes[0].pending_requests()), (1, 1, (0, 0)));
    assert_eq!((&some.missing[0].node, some.missing[0].reason), (nodes[1].id(), MissingReason::TimedOut));
}

/// A node sends no more acknowledgements than are taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_reader_holds_a_bounded_number_and_gets_all() {
    const MEMBERS: usize = 5_000;
    const CREDIT: u64 = 256;
    let nodes = Setup::new("slow-reader").formed(2).await;
    let handles = open(&nodes);
    let members: Vec<Member> = (0..MEMBERS)
        .map(|_| {
            let member = handles[1].connect_with_ack(|message, ack| ack.send(message));
            member.join("r").unwrap();
            member
        })
        .collect();
    until("all are known", async || *handles[0].room_size("r").await.unwrap() == MEMBERS as u64).await;
    let before = nodes[1].frames_sent();
    let mut acks = handles[0].to("r").emit_with_ack("x", LONG).unwrap();
    eventually("what may come has come", || nodes[1].frames_sent() - before == CREDIT).await;
    let mut came = BTreeSet::new();
    while let Some(ack) = soon("an acknowledgement", acks.next()).await {
        assert_eq!(ack.result.as_deref(), Ok(&b"x"[..]));
        assert!(came.insert(ack.member), "twice: {ack:?}");
        let sent = nodes[1].frames_sent() - before;
        assert!(sent <= came.len() as u64 + CREDIT + 1, "{sent} sent, {} taken", came.len());
        if came.len().is_multiple_of(64) {
            tokio::task::yield_now().await;
        }
    }
    assert_eq!((came.len(), acks.missing()), (MEMBERS, vec![]));
    drop(members);
    for node in &nodes {
        eventually("nothing is left", || node.pending_requests() == (0, 0)).await;
    }
}

/// Acknowledgements that are not given.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Vec<AckSender>>>);

impl Kept {
    fn sink(&self) -> impl Fn(Bytes, AckSender) + Send + Sync + 'static {
        let kept = self.clone();
        move |_, ack| kept.0.lock().unwrap().push(ack)
    }

    fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    fn wanted(&self) -> usize {
        self.0.lock().unwrap().iter().filter(|ack| ack.is_wanted()).count()
    }

    fn release(&self) {
        let kept = std::mem::take(&mut *self.0.lock().unwrap());
        kept.into_iter().for_each(|ack| ack.send("too late"));
    }
}
