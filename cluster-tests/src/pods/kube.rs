//! Pods with a node of the `chat` example.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use roomcast::ClusterSecret;
use roomcast::status::Report;
use tokio::process::Command;
use tokio::time::{Instant, sleep, timeout};

use super::service::{Endpoints, Service};
use super::{PORT, Space};
use crate::harness::processes::get;
use crate::netns::Pod;
use crate::process::{Process, chat_program};
use crate::wait::DEADLINE;

/// The port for clients in every pod.
const HTTP_PORT: u16 = 3000;
/// The port for probes in every pod.
const ADMIN_PORT: u16 = 9000;
/// How long a pod may take to end by itself: the default of Kubernetes.
const GRACE: Duration = Duration::from_secs(30);
/// How often a probe is made. Kubernetes has whole seconds; what happens between two probes is the same.
const PROBE: Duration = Duration::from_millis(100);

/// A deployment: its headless service, and the service for clients.
pub struct Kube {
    /// The network; other clusters may be on it.
    pub space: Arc<Space>,
    /// The name of the cluster.
    pub cluster: String,
    /// The secret of the cluster.
    pub secret: ClusterSecret,
    headless: String,
    /// Where the probes and the clients come from.
    edge: Pod,
    endpoints: Endpoints,
    made: usize,
}

/// A pod that runs.
pub struct ChatPod {
    /// The name of the pod and the id of its node.
    pub id: String,
    /// Its namespace.
    pub pod: Pod,
    /// Its only program.
    pub process: Process,
    edge: Pod,
}

/// How a pod ended after SIGTERM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this exit code; none when a signal ended it.
    ByItself(Option<i32>),
    /// By SIGKILL at the end of the grace period.
    Killed,
}

impl Kube {
    /// A deployment without pods, whose headless service is named `headless`.
    ///
    /// # Panics
    /// When the example does not build.
    pub fn new(space: &Arc<Space>, cluster: &str, headless: &str) -> Self {
        chat_program();
        Self {
            space: Arc::clone(space),
            cluster: cluster.to_owned(),
            secret: ClusterSecret::generate().expect("the system has random numbers"),
            headless: headless.to_owned(),
            edge: space.add(),
            endpoints: Endpoints::default(),
            made: 0,
        }
    }

    /// A network of its own with a deployment `chat` on it; `prefix` and `dnsmasq` as in [`Space::new`].
    ///
    /// # Panics
    /// As [`Space::new`].
    pub fn alone(prefix: &str, dnsmasq: &Path) -> Self {
        Self::new(&Arc::new(Space::new(prefix, dnsmasq, &[])), "chat", "peers")
    }

    /// Where clients are.
    pub fn edge(&self) -> &Pod {
        &self.edge
    }

    /// Starts the service for clients.
    ///
    /// # Panics
    /// When its port is taken.
    pub fn service(&self) -> Service {
        Service::start(&self.edge, &self.endpoints)
    }

    /// A pod that has an address and is not in the DNS.
    pub fn place(&self) -> Pod {
        self.space.add()
    }

    /// Puts a pod into the DNS, ready or not (`publishNotReadyAddresses`).
    pub fn publish(&self, pod: &Pod) {
        self.space.list(&self.headless, pod.ip());
    }

    /// Starts a node in a pod. It serves at some later time.
    pub fn run(&mut self, pod: Pod) -> ChatPod {
        let id = format!("{}-{}", self.cluster, self.made);
        self.made += 1;
        let mut command = pod.command(chat_program());
        command.args(["--node", "--id", &id, "--cluster", &self.cluster]);
        command.args(["--seed", &Space::seed(&self.headless)]);
        command.args(["--advertise", &format!("{}:{PORT}", pod.ip())]);
        for (flag, port) in [("--http", HTTP_PORT), ("--admin", ADMIN_PORT), ("--listen", PORT)] {
            command.args([flag, &format!("0.0.0.0:{port}")]);
        }
        command.env("ROOMCAST_SECRET", self.secret.to_text()).env("RUST_LOG", "info").env("NO_COLOR", "1");
        let process = Process::spawn(format!("pod {id}"), Command::from(command));
        ChatPod { id, pod, process, edge: self.edge.clone() }
    }

    /// Makes a pod, puts it into the DNS and starts its node.
    pub fn create(&mut self) -> ChatPod {
        let pod = self.place();
        self.publish(&pod);
        self.run(pod)
    }

    /// Waits until a pod is ready; then clients get to it.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn ready(&self, pod: &ChatPod) {
        pod.until_probe("/readyz", 200).await;
        self.endpoints.add((pod.pod.ip(), HTTP_PORT).into());
    }

    /// Waits until all these pods are ready.
    ///
    /// # Panics
    /// After the deadline.
    pub async fn all_ready(&self, pods: &[ChatPod]) {
        for pod in pods {
            self.ready(pod).await;
        }
    }

    /// Ends a pod as Kubernetes does: new clients go elsewhere, SIGTERM, SIGKILL after `GRACE`; then its address is
    /// gone, and what is sent there gets no answer.
    ///
    /// # Panics
    /// When it has ended already.
    pub async fn delete(&self, pod: ChatPod) -> Ended {
        self.begin_delete(&pod).await;
        self.end_delete(pod).await
    }

    /// The begin of [`delete`](Self::delete): until SIGTERM.
    ///
    /// # Panics
    /// When it has ended already.
    pub async fn begin_delete(&self, pod: &ChatPod) {
        self.endpoints.remove((pod.pod.ip(), HTTP_PORT).into());
        pod.process.terminate().await;
    }

    /// The rest of [`delete`](Self::delete); the grace period begins now.
    ///
    /// # Panics
    /// When the system does not let it go.
    pub async fn end_delete(&self, mut pod: ChatPod) -> Ended {
        let ended = match timeout(GRACE, pod.process.end()).await {
            Ok(status) => Ended::ByItself(status.code()),
            Err(_) => {
                pod.process.kill().await;
                Ended::Killed
            }
        };
        self.forget(&pod);
        pod.take_down();
        ended
    }

    /// Kills a pod with SIGKILL and takes its address away. Until [`forget`](Self::forget), the DNS has it all the same.
    ///
    /// # Panics
    /// When the system does not let it go.
    pub async fn crash(&self, pod: &mut ChatPod) {
        pod.process.kill().await;
        self.endpoints.remove((pod.pod.ip(), HTTP_PORT).into());
        pod.take_down();
    }

    /// Takes the address of a pod out of the DNS.
    pub fn forget(&self, pod: &ChatPod) {
        self.space.unlist(&self.headless, pod.pod.ip());
    }
}

impl ChatPod {
    /// Its address is gone: nobody answers there.
    fn take_down(&self) {
        self.pod.link_down().unwrap_or_else(|error| panic!("failed to take {} down: {error}", self.id));
    }

    /// What a probe says: the code and the body. None while nobody answers.
    pub async fn probe(&self, path: &str) -> Option<(u16, String)> {
        let (edge, path) = (self.edge.clone(), path.to_owned());
        let addr = SocketAddr::from((self.pod.ip(), ADMIN_PORT));
        let asked = tokio::task::spawn_blocking(move || edge.run(|| get(addr, &path)));
        asked.await.ok()?.ok()?.ok()
    }

    /// Waits until a probe gives this code.
    ///
    /// # Panics
    /// After the deadline, and at once when the program has ended.
    pub async fn until_probe(&self, path: &str, code: u16) {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = self.probe(path).await;
            if answer.as_ref().is_some_and(|(is, _)| *is == code) {
                return;
            }
            assert!(!self.process.has_ended(), "{} has ended", self.id);
            assert!(
                Instant::now() < end,
                "{}: {path} is not {code} within {DEADLINE:?}: {answer:?}",
                self.id
            );
            sleep(PROBE).await;
        }
    }

    /// Waits until its status is as `holds` says.
    ///
    /// # Panics
    /// After the deadline, with the last status.
    pub async fn until(&self, what: &str, mut holds: impl FnMut(&Report) -> bool) -> Report {
        let end = Instant::now() + DEADLINE;
        loop {
            let answer = self.probe("/status").await;
            let report: Option<Report> = answer.and_then(|(_, body)| serde_json::from_str(&body).ok());
            match report {
                Some(report) if holds(&report) => return report,
                report => {
                    assert!(Instant::now() < end, "{}: not within {DEADLINE:?}: {what}: {report:#?}", self.id)
                }
            }
            sleep(PROBE).await;
        }
    }
}

/// Waits until each of these pods lists exactly them as live, and is linked to all of them.
///
/// # Panics
/// After the deadline, with the last status.
pub async fn formed(pods: &[ChatPod]) {
    let mut ids: Vec<&str> = pods.iter().map(|pod| &*pod.id).collect();
    ids.sort_unstable();
    for pod in pods {
        pod.until("it is linked to exactly the others", |report| {
            let here = report.members.iter().filter(|member| matches!(&*member.state, "live" | "suspect"));
            let live = report.members.iter().filter(|member| member.state == "live" && member.linked);
            let up = report.links.iter().filter(|link| link.state == "up");
            live.map(|member| &*member.id).eq(ids.iter().copied())
                && here.count() == ids.len()
                && up.map(|link| &*link.peer).eq(ids.iter().copied().filter(|id| *id != pod.id))
        })
        .await;
    }
}
