//! Beside the system that is measured, each receiver has a TCP connection to the emitter: it says how many messages
//! have come, which paces every system alike, and whether something was wrong.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;

use crate::{Outcome, PATIENCE};

/// The receiver is there: a probe has come.
const READY: u64 = u64::MAX;
/// Something came out of order, twice, cut, or not at all.
const WRONG: u64 = u64::MAX - 1;

/// What the receivers said, at the emitter.
pub(crate) struct Receivers {
    /// The process of each.
    pub(crate) processes: Vec<u32>,
    state: watch::Receiver<Arc<Heard>>,
}

#[derive(Clone, Default)]
struct Heard {
    ready: usize,
    counts: Vec<u64>,
    failed: Option<String>,
}

impl Receivers {
    /// Waits for so many receivers, and tells each what the emitter's side of the system said when it was bound.
    pub(crate) async fn accept(
        listener: TcpListener,
        count: usize,
        bound: oneshot::Receiver<String>,
    ) -> Outcome<Self> {
        let notice = bound.await?;
        let heard = Heard { counts: vec![0; count], ..Heard::default() };
        let (tell, state) = watch::channel(Arc::new(heard));
        let tell = Arc::new(Mutex::new(tell));
        let mut processes = Vec::new();
        for at in 0..count {
            let (stream, _) = timeout(PATIENCE, listener.accept()).await??;
            stream.set_nodelay(true)?;
            let mut stream = BufReader::new(stream);
            processes.push(stream.read_u32_le().await?);
            stream.get_mut().write_all(format!("{at} {notice}\n").as_bytes()).await?;
            let tell = Arc::clone(&tell);
            tokio::spawn(async move {
                loop {
                    let word = stream.read_u64_le().await;
                    let tell = tell.lock().unwrap_or_else(PoisonError::into_inner);
                    let ended = word.is_err();
                    tell.send_modify(|heard| Arc::make_mut(heard).note(at, word.ok()));
                    if ended {
                        return;
                    }
                }
            });
        }
        Ok(Self { processes, state })
    }

    /// Whether a probe has come to all of them.
    pub(crate) fn ready(&self) -> bool {
        let heard = self.state.borrow();
        heard.ready == heard.counts.len()
    }

    /// Waits until each has so many messages.
    pub(crate) async fn have(&mut self, count: u64) -> Outcome<()> {
        let enough =
            |heard: &Arc<Heard>| heard.failed.is_some() || heard.counts.iter().all(|at| *at >= count);
        let late = match timeout(PATIENCE, self.state.wait_for(enough)).await {
            Ok(heard) => return heard?.failed.clone().map_or(Ok(()), |failed| Err(failed.into())),
            Err(late) => late,
        };
        let counts = &self.state.borrow().counts;
        Err(format!("see {count} messages arrive, of which came {counts:?}: {late}").into())
    }
}

impl Heard {
    fn note(&mut self, at: usize, word: Option<u64>) {
        match word {
            Some(READY) => self.ready += 1,
            Some(WRONG) => self.failed = Some(format!("receiver {at} got messages wrong")),
            Some(count) => self.counts[at] = count,
            None => self.failed = Some(format!("receiver {at} has gone")),
        }
    }
}

/// The receiver's end.
pub(crate) struct Emitter {
    stream: TcpStream,
    /// Which of the receivers this one is.
    pub(crate) at: usize,
    /// What the emitter's side of the system said.
    pub(crate) notice: String,
}

/// How a receiver stands.
#[derive(Clone, Copy, Default)]
pub(crate) struct Standing {
    /// Messages that came.
    pub(crate) count: u64,
    /// A probe has come.
    pub(crate) ready: bool,
    /// Something was not as it must be.
    pub(crate) wrong: bool,
}

impl Emitter {
    /// Dials until there is somebody.
    pub(crate) async fn dial(address: SocketAddr) -> Outcome<Self> {
        let dial = async {
            loop {
                match TcpStream::connect(address).await {
                    Ok(stream) => return stream,
                    Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
                }
            }
        };
        let mut stream = timeout(PATIENCE, dial).await?;
        stream.set_nodelay(true)?;
        stream.write_u32_le(std::process::id()).await?;
        let mut line = String::new();
        let mut reader = BufReader::new(stream);
        reader.read_line(&mut line).await?;
        let (at, notice) = line.trim_end_matches('\n').split_once(' ').ok_or("read what the emitter says")?;
        Ok(Self { at: at.parse()?, notice: notice.to_owned(), stream: reader.into_inner() })
    }

    /// Tells what changes until the emitter has gone.
    pub(crate) async fn tell(self, mut standing: watch::Receiver<Standing>) -> Outcome<()> {
        let (mut gone, mut to) = self.stream.into_split();
        let telling = async {
            let mut ready = false;
            while standing.changed().await.is_ok() {
                let now = *standing.borrow_and_update();
                if now.ready && !ready {
                    ready = true;
                    to.write_u64_le(READY).await?;
                }
                to.write_u64_le(if now.wrong { WRONG } else { now.count }).await?;
            }
            Ok(())
        };
        tokio::select! {
            told = telling => told,
            _ = gone.read_u8() => Ok(()),
        }
    }
}
