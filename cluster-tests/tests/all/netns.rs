//! The network namespaces of the harness: what passes, what does not, and that nothing is left.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command};
use std::time::Duration;

use cluster_tests::netns::{Net, Pod};
use cluster_tests::requirement;

const PORT: u16 = 7946;
const SUBNET: &str = "10.0.0.0/24";
/// How long one try waits, and how many there are: far more than the second that Linux takes to use a link again.
const TRY: Duration = Duration::from_millis(50);
const TRIES: usize = 800;

fn socket(pod: &Pod) -> UdpSocket {
    let socket = pod.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, PORT))).unwrap().unwrap();
    socket.set_read_timeout(Some(TRY)).unwrap();
    socket
}

/// Sends until it arrives; what else comes in is passed over.
fn arrives(from: &UdpSocket, to: &UdpSocket, ip: Ipv4Addr, text: &str) {
    for _ in 0..TRIES {
        // A link that is just coming back may say that there is no way.
        let _ = from.send_to(text.as_bytes(), (ip, PORT));
        if received(to).is_some_and(|got| got == text) {
            return;
        }
    }
    panic!("{text:?} does not arrive");
}

/// Sends, and shows that it does not arrive: what a third one sends after it does.
fn is_lost(from: &UdpSocket, to: &UdpSocket, ip: Ipv4Addr, third: &UdpSocket) {
    for _ in 0..2 {
        from.send_to(b"lost", (ip, PORT)).unwrap();
    }
    third.send_to(b"fence", (ip, PORT)).unwrap();
    for _ in 0..TRIES {
        match received(to).as_deref() {
            Some("fence") => return,
            Some("lost") => panic!("it arrived"),
            _ => {}
        }
    }
    panic!("the one that is not cut off does not arrive");
}

fn received(socket: &UdpSocket) -> Option<String> {
    let mut buf = [0; 64];
    match socket.recv(&mut buf) {
        Ok(len) => Some(String::from_utf8_lossy(&buf[..len]).into_owned()),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
        Err(error) => panic!("{error}"),
    }
}

fn three(prefix: &str) -> (Net, [Pod; 3], [UdpSocket; 3]) {
    let net = Net::new(prefix, SUBNET).unwrap();
    let pods = [(); 3].map(|()| net.add().unwrap());
    let sockets = [0, 1, 2].map(|index| socket(&pods[index]));
    for (from, to) in [(0, 1), (1, 0), (2, 0), (2, 1)] {
        arrives(&sockets[from], &sockets[to], pods[to].ip(), "hello");
    }
    // Tries that came twice.
    for socket in &sockets {
        while received(socket).is_some() {}
    }
    (net, pods, sockets)
}

/// The names of namespaces with this prefix.
fn left(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with(&format!("{prefix}."))).collect()
}

fn was_killed(mut child: Child) -> bool {
    use std::os::unix::process::ExitStatusExt;
    child.wait().unwrap().signal() == Some(9)
}

#[test]
fn pods_hear_each_other_until_a_link_is_down() {
    let Some(()) = requirement::namespaces() else { return };
    let (_net, pods, sockets) = three("link");
    pods[0].link_down().unwrap();
    is_lost(&sockets[1], &sockets[0], pods[0].ip(), &socket_at(&pods[0]));
    is_lost(&sockets[0], &sockets[1], pods[1].ip(), &sockets[2]);
    pods[0].link_up().unwrap();
    arrives(&sockets[0], &sockets[1], pods[1].ip(), "again");
    arrives(&sockets[1], &sockets[0], pods[0].ip(), "again");
}

/// Another socket in the pod itself, which needs no link.
fn socket_at(pod: &Pod) -> UdpSocket {
    pod.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap().unwrap()
}

#[test]
fn a_one_way_cut_is_one_way() {
    let Some(()) = requirement::namespaces() else { return };
    let (net, pods, sockets) = three("oneway");
    pods[0].drop_to(pods[1].ip()).unwrap();
    is_lost(&sockets[0], &sockets[1], pods[1].ip(), &sockets[2]);
    arrives(&sockets[1], &sockets[0], pods[0].ip(), "this way");
    arrives(&sockets[0], &sockets[2], pods[2].ip(), "to the third");
    pods[0].pass_to(pods[1].ip()).unwrap();
    arrives(&sockets[0], &sockets[1], pods[1].ip(), "again");
    assert!(pods[0].pass_to(pods[1].ip()).is_ok_and(|()| pods[0].pass_to(pods[1].ip()).is_err()));

    net.cut(&pods[0], &pods[1]).unwrap();
    is_lost(&sockets[0], &sockets[1], pods[1].ip(), &sockets[2]);
    is_lost(&sockets[1], &sockets[0], pods[0].ip(), &sockets[2]);
    net.heal(&pods[0], &pods[1]).unwrap();
    arrives(&sockets[0], &sockets[1], pods[1].ip(), "healed");
}

#[test]
fn a_pod_gets_the_address_that_another_had() {
    let Some(()) = requirement::namespaces() else { return };
    let (net, pods, sockets) = three("address");
    let (old, free) = (pods[1].ip(), Ipv4Addr::new(10, 0, 0, 77));
    pods[1].readdress(free).unwrap();
    pods[2].readdress(old).unwrap();
    assert_eq!((net.pod(1).unwrap().ip(), net.pod(2).unwrap().ip()), (free, old));
    arrives(&sockets[0], &sockets[1], free, "moved");
    arrives(&sockets[0], &sockets[2], old, "moved in");
    assert!(pods[0].readdress(Ipv4Addr::new(10, 0, 1, 1)).is_err());
    assert!(net.pod(3).is_none());
}

#[test]
fn programs_run_inside_and_connections_too() {
    let Some(()) = requirement::namespaces() else { return };
    let net = Net::new("inside", SUBNET).unwrap();
    let (server, client) = (net.add().unwrap(), net.add().unwrap());
    let shown = client.command("ip").args(["-4", "address"]).output().unwrap();
    let shown = String::from_utf8(shown.stdout).unwrap();
    assert!(shown.contains("10.0.0.2/24") && shown.contains("127.0.0.1/8"), "{shown}");

    // As all addresses of a subnet are free for every net, this one is the server's alone.
    let listener = server.run(|| TcpListener::bind((server.ip(), PORT))).unwrap().unwrap();
    let to = SocketAddr::from((server.ip(), PORT));
    let mut stream = client.run(|| TcpStream::connect(to)).unwrap().unwrap();
    stream.write_all(b"over TCP").unwrap();
    drop(stream);
    let (mut stream, peer) = listener.accept().unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!((text.as_str(), peer.ip()), ("over TCP", client.ip().into()));
}

#[test]
fn nothing_is_left() {
    const PREFIX: &str = "cleanup";
    let Some(()) = requirement::namespaces() else { return };
    let net = Net::new(PREFIX, SUBNET).unwrap();
    let pod = net.add().unwrap();
    let sleeper = pod.command("sleep").arg("600").spawn().unwrap();
    until_inside(&sleeper, &pod.name());
    drop(net);
    assert_eq!(left(PREFIX).len(), 2, "a pod is held");
    drop(pod);
    assert_eq!(left(PREFIX), [""; 0]);
    assert!(was_killed(sleeper));

    let panicked = catch_unwind(AssertUnwindSafe(|| {
        let _net = Net::new(PREFIX, SUBNET).unwrap();
        std::panic::resume_unwind(Box::new("as a test that fails"));
    }));
    assert!(panicked.is_err());
    assert_eq!(left(PREFIX), [""; 0]);

    // Of a process that was killed: the one with this id now was not started then.
    let old = format!("{PREFIX}.1.7.0.0");
    assert!(Command::new("ip").args(["netns", "add", &old]).status().unwrap().success());
    let sleeper = Command::new("ip").args(["netns", "exec", &old, "sleep", "600"]).spawn().unwrap();
    until_inside(&sleeper, &old);
    drop(Net::new(PREFIX, SUBNET).unwrap());
    assert_eq!(left(PREFIX), [""; 0]);
    assert!(was_killed(sleeper));
}

/// Waits until a process has got into its namespace.
fn until_inside(child: &Child, name: &str) {
    for _ in 0..TRIES {
        let pids = Command::new("ip").args(["netns", "pids", name]).output().unwrap();
        let pids = String::from_utf8(pids.stdout).unwrap();
        if pids.split_whitespace().any(|pid| pid == child.id().to_string()) {
            return;
        }
    }
    panic!("it does not start in {name}");
}
