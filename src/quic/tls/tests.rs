//! Handshakes between real endpoints on loopback.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use quinn::{Connection, ConnectionError, Endpoint};
use rcgen::{CertifiedIssuer, PublicKeyData};
use tokio::time::timeout;

use super::*;
use crate::quic::endpoint::{QuicConfig, async_socket, bind, endpoint, server_name};

const DAY: Duration = Duration::from_secs(24 * 3600);
const LONG: Duration = Duration::from_secs(20);

#[expect(clippy::disallowed_methods, reason = "handshakes check certificates against the wall clock")]
fn now() -> SystemTime {
    SystemTime::now()
}

fn name(cluster: &str) -> ClusterName {
    ClusterName::new(cluster).unwrap()
}

fn secret(text: &str) -> ClusterSecret {
    ClusterSecret::from_bytes(text.repeat(32)).unwrap()
}

fn identity_at(text: &str, cluster: &str, now: SystemTime) -> Identity {
    Identity::from_secret(name(cluster), &secret(text), &[], CertificateConfig::default(), now).unwrap()
}

pub(crate) fn identity(text: &str, cluster: &str) -> Identity {
    identity_at(text, cluster, now())
}

pub(crate) fn endpoint_at(identity: &Identity, config: &QuicConfig) -> Endpoint {
    let bound = bind(([127, 0, 0, 1], 0).into(), config).unwrap();
    endpoint(async_socket(bound.socket).unwrap(), config, identity).unwrap()
}

type Outcome = Result<Connection, ConnectionError>;

/// Dials from `a` to `b`: what each of them sees.
pub(crate) async fn connect(a: &Endpoint, b: &Endpoint, cluster: &str) -> (Outcome, Outcome) {
    let dial = a.connect(b.local_addr().unwrap(), &server_name(&name(cluster))).unwrap();
    let accept = async { b.accept().await.unwrap().await };
    timeout(LONG, async { tokio::join!(dial, accept) }).await.expect("both sides come to an end")
}

/// Dials from `a` to `b`, which must fail: why, for each of them.
async fn refused(a: &Identity, b: &Identity) -> (RefusedTls, RefusedTls) {
    let config = QuicConfig::default();
    let (from, to) = (endpoint_at(a, &config), endpoint_at(b, &config));
    let (dialed, accepted) = connect(&from, &to, a.cluster().as_str()).await;
    let dialed = match dialed {
        Err(error) => error,
        // The acceptor is the one that refused.
        Ok(connection) => timeout(LONG, connection.closed()).await.expect("the dialer is told"),
    };
    (explain(&dialed).unwrap(), explain(&accepted.unwrap_err()).unwrap())
}

async fn connects(a: &Identity, b: &Identity) {
    let config = QuicConfig::default();
    let (from, to) = (endpoint_at(a, &config), endpoint_at(b, &config));
    let (dialed, accepted) = connect(&from, &to, a.cluster().as_str()).await;
    let (dialed, accepted) = (dialed.unwrap(), accepted.unwrap());
    for connection in [&dialed, &accepted] {
        verify_peer_name(connection, a.cluster()).unwrap();
        assert_eq!(verify_peer_name(connection, &name("other")), Err(RefusedTls::OtherCluster));
    }
    // A whole round trip, so that neither has refused meanwhile.
    let (mut send, mut recv) = dialed.open_bi().await.unwrap();
    send.write_all(b"ping").await.unwrap();
    let (mut back, mut heard) = accepted.accept_bi().await.unwrap();
    heard.read_exact(&mut [0; 4]).await.unwrap();
    back.write_all(b"pong").await.unwrap();
    recv.read_exact(&mut [0; 4]).await.unwrap();
}

/// The certificate that the other side of a connection showed.
fn shown(connection: &Connection) -> CertificateDer<'static> {
    let chain = connection.peer_identity().unwrap().downcast::<Vec<CertificateDer<'static>>>().unwrap();
    chain[0].clone()
}

#[tokio::test]
async fn nodes_of_one_cluster_connect() {
    connects(&identity("one", "chat"), &identity("one", "chat")).await;
    let longest = "x".repeat(63);
    connects(&identity("one", &longest), &identity("one", &longest)).await;
}

#[tokio::test]
async fn another_secret_is_refused() {
    let (dialer, acceptor) = refused(&identity("one", "chat"), &identity("two", "chat")).await;
    assert_eq!((dialer, acceptor), (RefusedTls::OtherSecret, RefusedTls::OtherSecret));
    // The secret is checked before the name.
    let (dialer, acceptor) = refused(&identity("one", "chat"), &identity("two", "game")).await;
    assert_eq!((dialer, acceptor), (RefusedTls::OtherSecret, RefusedTls::OtherSecret));
}

#[tokio::test]
async fn another_cluster_is_refused() {
    let (dialer, acceptor) = refused(&identity("one", "chat"), &identity("one", "game")).await;
    assert_eq!((dialer, acceptor), (RefusedTls::OtherCluster, RefusedTls::OtherCluster));
}

/// A dialer that trusts like `node` but shows another's certificate, or none.
fn careless(node: &Identity, shows: Option<&Identity>) -> quinn::ClientConfig {
    let builder = rustls::ClientConfig::builder_with_provider(node.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(node.current.clone());
    let mut config = match shows {
        Some(identity) => builder.with_client_cert_resolver(identity.current.clone()),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()))
}

#[tokio::test]
async fn the_acceptor_refuses_for_itself() {
    let node = identity("one", "chat");
    let long_ago = identity_at("one", "chat", now() - 10 * DAY);
    let anonymous = "the dialer sent no certificate: it is not a node";
    for (shows, reason) in [
        (None, RefusedTls::OtherTls(anonymous.into())),
        (Some(identity("two", "chat")), RefusedTls::OtherSecret),
        (Some(identity("one", "game")), RefusedTls::OtherCluster),
        (Some(long_ago), RefusedTls::CertificateExpired),
    ] {
        let to = endpoint_at(&node, &QuicConfig::default());
        let mut from = endpoint_at(&node, &QuicConfig::default());
        from.set_default_client_config(careless(&node, shows.as_ref()));
        let (dialed, accepted) = connect(&from, &to, "chat").await;
        assert_eq!(explain(&accepted.unwrap_err()), Some(reason.clone()));
        // The dialer thinks that it is connected until it hears otherwise: see `explain`.
        let error = timeout(LONG, dialed.unwrap().closed()).await.unwrap();
        assert_eq!(explain(&error), Some(reason));
    }
}

#[tokio::test]
async fn certificates_out_of_their_time_are_refused() {
    let good = identity("one", "chat");
    for wrong in [now() - 10 * DAY, now() + 10 * DAY] {
        let wrong = identity_at("one", "chat", wrong);
        let expired = (RefusedTls::CertificateExpired, RefusedTls::CertificateExpired);
        assert_eq!(refused(&good, &wrong).await, expired);
        assert_eq!(refused(&wrong, &good).await, expired);
    }
    // A clock that is wrong by less than `backdate` is no reason.
    connects(&good, &identity_at("one", "chat", now() + Duration::from_secs(3000))).await;
}

#[tokio::test]
async fn another_protocol_is_refused() {
    let node = identity("one", "chat");
    let to = endpoint_at(&node, &QuicConfig::default());
    let mut from = endpoint_at(&node, &QuicConfig::default());
    let mut config = rustls::ClientConfig::builder_with_provider(node.provider.clone())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(node.current.clone())
        .with_client_cert_resolver(node.current.clone());
    config.alpn_protocols = vec![b"h3".to_vec()];
    from.set_default_client_config(quinn::ClientConfig::new(Arc::new(
        QuicClientConfig::try_from(config).unwrap(),
    )));
    let (dialed, accepted) = connect(&from, &to, "chat").await;
    for error in [dialed.unwrap_err(), accepted.unwrap_err()] {
        let Some(RefusedTls::OtherTls(text)) = explain(&error) else { panic!("{error}") };
        assert!(text.contains("another protocol"), "{text}");
    }
}

#[tokio::test]
async fn a_renewed_certificate_counts_from_the_next_handshake() {
    let (a, b) = (identity("one", "chat"), identity("one", "chat"));
    let config = QuicConfig::default();
    let (from, to) = (endpoint_at(&a, &config), endpoint_at(&b, &config));
    let (old, old_accepted) = connect(&from, &to, "chat").await;
    let (old, old_accepted) = (old.unwrap(), old_accepted.unwrap());

    let later = now() + Duration::from_secs(60);
    for identity in [&a, &b] {
        assert!(!identity.renew_due(now()) && identity.renew_due(now() + DAY / 2));
        identity.renew(later).unwrap();
        assert_eq!(identity.not_after(), later + DAY);
    }
    let (new, new_accepted) = connect(&from, &to, "chat").await;
    let (new, new_accepted) = (new.unwrap(), new_accepted.unwrap());
    assert_ne!(shown(&old), shown(&new));
    assert_ne!(shown(&old_accepted), shown(&new_accepted));

    let mut stream = old.open_uni().await.unwrap();
    stream.write_all(b"alive").await.unwrap();
    stream.finish().unwrap();
    let mut heard = old_accepted.accept_uni().await.unwrap();
    assert_eq!(heard.read_to_end(10).await.unwrap(), b"alive");
}

#[tokio::test]
async fn a_secret_is_changed_step_by_step() {
    let (old, new) = (secret("one"), secret("two"));
    let node = |signs: &ClusterSecret, accepts: &[ClusterSecret]| {
        Identity::from_secret(name("chat"), signs, accepts, CertificateConfig::default(), now()).unwrap()
    };
    let (before, prepared) = (node(&old, &[]), node(&old, std::slice::from_ref(&new)));
    let (changed, after) = (node(&new, std::slice::from_ref(&old)), node(&new, &[]));
    for (a, b) in [(&before, &prepared), (&prepared, &changed), (&changed, &after)] {
        connects(a, b).await;
        connects(b, a).await;
    }
    // Two steps at once: the acceptor knows the dialer's authority, the dialer not the acceptor's, and the reverse.
    let reason = (RefusedTls::OtherSecret, RefusedTls::OtherSecret);
    assert_eq!(refused(&before, &changed).await, reason);
    assert_eq!(refused(&changed, &before).await, reason);
}

/// The trust anchor is the subject and the key; both must stay as they are from version to version.
#[test]
fn every_node_derives_the_same_authority() {
    let one = ca_certificate(&secret("one")).unwrap();
    assert_eq!(one, ca_certificate(&secret("one")).unwrap());
    assert_ne!(one, ca_certificate(&secret("two")).unwrap());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(one).unwrap();
    let subject = roots.roots[0].subject.as_ref();
    assert_eq!(subject, b"\x31\x1c0\x1a\x06\x03\x55\x04\x03\x0c\x13roomcast cluster CA");
    let key = secret("one").ca_key().unwrap();
    assert!(roots.roots[0].subject_public_key_info.as_ref().ends_with(key.der_bytes()));
}

#[test]
fn impossible_times_are_errors() {
    let node = |config, now| Identity::from_secret(name("chat"), &secret("one"), &[], config, now);
    let forever = CertificateConfig { lifetime: Duration::MAX, ..Default::default() };
    assert!(matches!(node(forever, now()), Err(TlsError::Validity)));
    assert!(matches!(node(CertificateConfig::default(), UNIX_EPOCH), Err(TlsError::Validity)));
    let good = identity("one", "chat");
    let not_after = good.not_after();
    assert!(good.renew(UNIX_EPOCH).is_err());
    assert_eq!(good.not_after(), not_after);
}

#[test]
fn debug_shows_no_key() {
    let text = format!("{:?}", identity("one", "chat"));
    assert_eq!(text, "Identity { cluster: chat, .. }");
}

/// A directory that is removed in the end.
pub(crate) struct TempDir(PathBuf);

impl TempDir {
    pub(crate) fn new(what: &str) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("roomcast-{what}-{}-{count}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// An authority outside of roomcast, like cert-manager.
fn authority(subject: &str) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, subject);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

fn pem(label: &str, der: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = format!("-----BEGIN {label}-----\n");
    for (i, chunk) in der.chunks(3).enumerate() {
        let mut bytes = [0; 4];
        bytes[1..=chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes(bytes);
        for digit in 0..4 {
            let value = DIGITS[(bits >> (18 - 6 * digit)) as usize & 63];
            text.push(if digit > chunk.len() { '=' } else { char::from(value) });
        }
        if i % 16 == 15 {
            text.push('\n');
        }
    }
    text + &format!("\n-----END {label}-----\n")
}

/// A certificate and its key as PEM.
fn issue(
    authority: &CertifiedIssuer<'static, KeyPair>,
    dns: &str,
    not_after: SystemTime,
) -> (String, String) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([dns.to_owned()]).unwrap();
    params.not_after = not_after.into();
    let cert = params.signed_by(&key, authority).unwrap();
    (pem("CERTIFICATE", cert.der()), pem("PRIVATE KEY", &key.serialize_der()))
}

fn ca_pem(authority: &CertifiedIssuer<'static, KeyPair>) -> String {
    pem("CERTIFICATE", authority.der())
}

fn pem_files(dir: &TempDir) -> PemFiles {
    PemFiles { ca: dir.path("ca.crt"), cert: dir.path("tls.crt"), key: dir.path("tls.key") }
}

fn write(files: &PemFiles, ca: &str, (cert, key): &(String, String)) {
    std::fs::write(&files.ca, ca).unwrap();
    std::fs::write(&files.cert, cert).unwrap();
    std::fs::write(&files.key, key).unwrap();
}

/// In whole seconds, as certificates have it; from the first call on, so that every call with the same days says the same.
fn in_days(days: u32) -> SystemTime {
    static FIRST: LazyLock<Duration> = LazyLock::new(|| now().duration_since(UNIX_EPOCH).unwrap());
    UNIX_EPOCH + Duration::from_secs(FIRST.as_secs()) + days * DAY
}

#[tokio::test]
async fn pem_files_are_used_and_reloaded() {
    let (old, new) = (authority("old"), authority("new"));
    let (dir_a, dir_b) = (TempDir::new("a"), TempDir::new("b"));
    let (files_a, files_b) = (pem_files(&dir_a), pem_files(&dir_b));
    let dns = "node.chat.roomcast";
    write(&files_a, &ca_pem(&old), &issue(&old, dns, in_days(30)));
    write(&files_b, &ca_pem(&old), &issue(&old, dns, in_days(30)));
    let load = |files: &PemFiles| Identity::from_pem_files(name("chat"), files.clone(), now()).unwrap();
    let (a, b) = (load(&files_a), load(&files_b));
    assert_eq!(a.not_after(), in_days(30));
    connects(&a, &b).await;
    assert!(!a.reload_if_changed(now()).unwrap());

    // The next authority takes over: a has its certificate from it already, b still from the last.
    let both = ca_pem(&old) + &ca_pem(&new);
    write(&files_a, &both, &issue(&new, dns, in_days(60)));
    assert!(a.reload_if_changed(now()).unwrap());
    assert!(!a.reload_if_changed(now()).unwrap());
    assert_eq!(a.not_after(), in_days(60));
    assert_eq!(refused(&a, &b).await, (RefusedTls::OtherSecret, RefusedTls::OtherSecret));
    std::fs::write(&files_b.ca, &both).unwrap();
    assert!(b.reload_if_changed(now()).unwrap());
    connects(&a, &b).await;
    connects(&b, &a).await;
}

#[tokio::test]
async fn bad_pem_files_leave_the_last_good_ones() {
    let (good, other) = (authority("good"), authority("other"));
    let dir = TempDir::new("bad");
    let files = pem_files(&dir);
    let dns = "node.chat.roomcast";
    let first = issue(&good, dns, in_days(30));
    write(&files, &ca_pem(&good), &first);
    let node = Identity::from_pem_files(name("chat"), files.clone(), now()).unwrap();
    let second = issue(&good, dns, in_days(60));
    for (ca, pair, complaint) in [
        (ca_pem(&good), (second.0.clone(), first.1.clone()), "tls.key"),
        (ca_pem(&other), second.clone(), "UnknownIssuer"),
        (ca_pem(&good), issue(&good, "node.game.roomcast", in_days(60)), "as node.chat.roomcast"),
        (ca_pem(&good), issue(&good, dns, in_days(0) - DAY), "expired"),
        (String::new(), second.clone(), "ca.crt: there is no certificate in it"),
        (ca_pem(&good), (second.0.clone(), "nonsense".into()), "tls.key"),
        (
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n".into(),
            second.clone(),
            "authority",
        ),
        ("x".repeat(1 << 21), second.clone(), "larger than"),
    ] {
        write(&files, &ca, &pair);
        let error = node.reload_if_changed(now()).unwrap_err().to_string();
        assert!(error.contains(complaint), "{error} does not say {complaint}");
        assert!(Identity::from_pem_files(name("chat"), files.clone(), now()).is_err());
    }
    write(&files, &ca_pem(&good), &second);
    std::fs::remove_file(&files.key).unwrap();
    assert!(node.renew(now()).unwrap_err().to_string().contains("tls.key"));
    assert_eq!(node.not_after(), in_days(30));
    connects(&node, &node).await;
    write(&files, &ca_pem(&good), &second);
    assert!(node.reload_if_changed(now()).unwrap());
    assert_eq!(node.not_after(), in_days(60));
}
