//! What is refused, what fails, and that nothing is left behind.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_is_an_error_where_it_was_asked() {
    let nodes = Setup::new("unfit").config(|config| config.link.max_frame_bytes = 1 << 20).formed(2).await;
    let ran = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&ran);
    let _number = nodes[1]
        .on_server_event("number", move |event: ServerEvent<u64>| {
            count.fetch_add(1, Ordering::Relaxed);
            async move { event.data }
        })
        .unwrap();
    let _panics = nodes[1]
        .on_server_event("panic", async |event: ServerEvent<bool>| -> () {
            if event.data {
                tokio::task::yield_now().await;
            }
            panic!("a handler that panics");
        })
        .unwrap();
    let begins = |_: ServerEvent<()>| -> std::future::Ready<()> { panic!("before it begins") };
    let _begins = nodes[1].on_server_event("begin", begins).unwrap();
    let _large = nodes[1].on_server_event("large", async |_: ServerEvent<()>| "x".repeat(1 << 20)).unwrap();
    handled_by(1, nodes[0].servers()).await;

    let data = json!({"of": "a wrong type"});
    let asked = nodes[0].server_side_emit_with_ack::<u64>("number", &data, LONG);
    let error = soon("an answer", asked).await.unwrap().answers.remove(0).1.unwrap_err();
    assert!(error.to_string().starts_with("read the data of the event there: invalid type: map"), "{error}");
    nodes[0].server_side_emit("number", &data).unwrap();
    logged("unfit-1", &["does not fit", "number"]).await;
    assert_eq!(ran.load(Ordering::Relaxed), 0, "the handler is not run");

    let asked = nodes[0].server_side_emit_with_ack::<String>("number", &1, LONG);
    let error = soon("an answer", asked).await.unwrap().answers.remove(0).1.unwrap_err();
    assert!(error.to_string().starts_with("read the answer to the event: invalid type"), "{error}");
    assert_eq!(ran.load(Ordering::Relaxed), 1);

    for (name, data) in
        [("panic", json!(false)), ("panic", json!(true)), ("begin", json!(null)), ("large", json!(null))]
    {
        let asked = nodes[0].server_side_emit_with_ack::<Value>(name, &data, LONG);
        let acks = soon(name, asked).await.unwrap();
        assert_eq!(acks.answers[0].1, Err(ServerEventError::Failed), "{name}");
    }

    let long = "x".repeat(nodes[0].name().len() + 512);
    let refused = EmitError::Id(IdError::Event { len: long.len(), limit: 512 });
    assert_eq!(nodes[0].server_side_emit(&long, &()), Err(refused.clone()));
    let asked = nodes[0].server_side_emit_with_ack::<()>(&long, &(), LONG).await;
    assert_eq!(asked.unwrap_err(), AskError::from(refused));
    assert!(nodes[0].on_server_event(&long, async |_: ServerEvent<()>| {}).is_err());
    let much = "x".repeat(1 << 20);
    assert!(matches!(nodes[0].server_side_emit("number", &much), Err(EmitError::TooLarge { .. })));
    let fits = "x".repeat((1 << 20) - 100);
    assert_eq!(nodes[0].server_side_emit("number", &fits).unwrap().queued, 1);
    let keys = std::collections::BTreeMap::from([((1, 2), 3)]);
    assert!(matches!(nodes[0].server_side_emit("number", &keys), Err(EmitError::Data(_))));
    let outside = std::thread::scope(|scope| {
        let poll = || {
            let mut asked = pin!(nodes[0].server_side_emit_with_ack::<()>("number", &1, LONG));
            asked.as_mut().poll(&mut Context::from_waker(Waker::noop()))
        };
        scope.spawn(poll).join().unwrap()
    });
    assert_eq!(outside, Poll::Ready(Err(AskError::NoRuntime)));
    nothing_is_left(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_than_may_be_handled_at_a_time_is_busy() {
    let nodes = Setup::new("busy").config(|config| config.link.max_server_events = 4).formed(2).await;
    let open = Arc::new(tokio::sync::Semaphore::new(0));
    let (gate, running) = (Arc::clone(&open), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&running);
    let _handler = nodes[1]
        .on_server_event("wait", move |_: ServerEvent<()>| {
            let (gate, count) = (Arc::clone(&gate), Arc::clone(&count));
            async move {
                count.fetch_add(1, Ordering::Relaxed);
                gate.acquire().await.unwrap().forget();
            }
        })
        .unwrap();
    handled_by(1, nodes[0].servers()).await;
    let ask = || async { nodes[0].server_side_emit_with_ack::<()>("wait", &(), LONG).await.unwrap() };
    let four = async { tokio::join!(ask(), ask(), ask(), ask()) };
    let fifth = async {
        eventually("four are handled", || running.load(Ordering::Relaxed) == 4).await;
        let acks = soon("the fifth is refused", ask()).await;
        assert_eq!(acks.missing, [missing("busy-1", MissingReason::Busy)]);
        nodes[0].server_side_emit("wait", &()).unwrap();
        logged("busy-1", &["too many are being handled", "limit=4", "refused=2"]).await;
        open.add_permits(4);
    };
    let (four, ()) = soon("all end", async { tokio::join!(four, fifth) }).await;
    for acks in [four.0, four.1, four.2, four.3] {
        assert_eq!((acks.answers.len(), acks.missing.len()), (1, 0));
    }
    open.add_permits(1);
    assert_eq!(soon("there is room again", ask()).await.answers.len(), 1);
    assert_eq!(running.load(Ordering::Relaxed), 5, "what was refused did not run");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dropped_question_leaves_nothing() {
    let nodes = Setup::new("dropped").formed(3).await;
    let never = || async |_: ServerEvent<()>| std::future::pending::<()>().await;
    let _handlers = (
        nodes[1].on_server_event("never", never()).unwrap(),
        nodes[2].on_server_event("never", never()).unwrap(),
    );
    handled_by(2, nodes[0].servers()).await;
    let mut asked: Vec<_> =
        (0..100).map(|_| Box::pin(nodes[0].server_side_emit_with_ack::<()>("never", &(), LONG))).collect();
    for question in &mut asked {
        assert!(tokio::time::timeout(Duration::ZERO, question).await.is_err());
    }
    assert_eq!(nodes[0].pending_requests(), (100, 0));
    eventually("they arrive", || nodes[1..].iter().all(|node| node.pending_requests() == (0, 100))).await;
    drop(asked);
    nothing_is_left(&nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_handler_may_change_handlers_and_a_detached_one_goes_with_its_node() {
    let mut nodes = Setup::new("detach").formed(2).await;
    let held = Arc::new(());
    let (node, hold) = (nodes[1].node.clone(), Arc::clone(&held));
    let handler = move |event: ServerEvent<String>| {
        // In place, on the task that reads the link.
        let other = node.on_server_event(&event.data, async |_: ServerEvent<()>| "new").unwrap();
        drop(node.on_server_event("register", async |_: ServerEvent<()>| {}).unwrap());
        other.detach();
        let hold = Arc::clone(&hold);
        async move { Arc::strong_count(&hold) }
    };
    nodes[1].on_server_event("register", handler).unwrap().detach();
    handled_by(1, nodes[0].servers()).await;
    let asked = nodes[0].server_side_emit_with_ack::<usize>("register", "later", LONG);
    assert_eq!(soon("an answer", asked).await.unwrap().answers[0].1, Ok(3));
    let asked = nodes[0].server_side_emit_with_ack::<String>("later", &(), LONG);
    assert_eq!(soon("an answer", asked).await.unwrap().answers[0].1, Ok("new".to_owned()));

    // It owns its node, so the node goes on until it is told to stop.
    let stopped = nodes.pop().unwrap();
    assert!(Arc::strong_count(&held) > 1);
    stopped.stop().await;
    eventually("the handler is gone", || Arc::strong_count(&held) == 1).await;
    let late = stopped.on_server_event("late", async |_: ServerEvent<()>| {}).unwrap();
    late.detach();
}
