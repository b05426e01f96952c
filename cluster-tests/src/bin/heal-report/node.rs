//! A node of roomcast, as the report starts it: this program again, with other arguments.

use bytes::Bytes;
use cluster_tests::heal::record::Book;
use cluster_tests::heal::station::{self, ROOM, Wire};
use roomcast::{ClusterSecret, Event, MemberState, Namespace, Node};

use crate::BoxError;

/// `RUN LISTEN SEEDS`: a run `a.1` is one of the node `a`; seeds are separated by commas.
#[tokio::main]
pub(crate) async fn start(args: &[String]) -> Result<(), BoxError> {
    let [run, listen, seeds] = args else {
        return Err("start a node: its arguments are RUN LISTEN SEEDS".into());
    };
    let book = station::book(run);
    let id = run.split('.').next().unwrap_or(run);
    let node = Node::builder()
        .cluster("heal-report")
        .id(id)
        .listen(listen)
        .seeds(seeds.split(','))
        // It guards nothing but a report on one machine.
        .secret(ClusterSecret::from_bytes(*b"the nodes of one heal report, in pods of their own")?)
        .start()
        .await?;
    note_events(&node, book.clone());
    let namespace = node.namespace("/")?;
    let noted = book.clone();
    let member = namespace.connect(move |message: Bytes| noted.arrived(&message));
    member.join(ROOM)?;
    node.ready().await;
    node.settled().await;
    let wire = Roomcast { node, namespace, book: book.clone() };
    station::run(&book, &wire).await?;
    drop(member);
    wire.node.stop().await;
    Ok(())
}

/// What a node says of trouble; that others come and links come up is none.
fn note_events(node: &Node, book: Book) {
    let mut events = node.events();
    tokio::spawn(async move {
        while let Some(event) = events.recv().await {
            if let Event::Gap { frames, outgoing: true, .. } = event {
                book.told(frames);
            }
            match event {
                Event::MemberJoined { .. } | Event::LinkUp { .. } | Event::LinkSynced { .. } => {}
                Event::MemberState { state: MemberState::Live, .. } => {}
                trouble => book.sign(format!("{trouble:?}")),
            }
        }
    });
}

struct Roomcast {
    node: Node,
    namespace: Namespace,
    book: Book,
}

impl Wire for Roomcast {
    fn emit(&self, message: Vec<u8>) {
        match self.namespace.to(ROOM).emit(message) {
            Ok(receipt) if receipt.dropped.is_empty() => {}
            Ok(receipt) => {
                self.book.sign(format!("emit: {:?}", receipt.dropped));
                self.book.told(receipt.dropped.len() as u64);
            }
            Err(error) => self.book.sign(format!("emit: {error}")),
        }
    }

    async fn leave(&self) {
        self.node.drain().await;
    }
}
