//! Who may talk to whom: the cluster secret, the certificates made from it, and TLS for both directions of QUIC.
//!
//! From the [`ClusterSecret`] every node derives the same certificate authority and signs a short-lived certificate
//! for itself, for the name `node.<cluster>.roomcast`. Dialer and acceptor both show one and both check the other's:
//! authority, time and name. Only TLS 1.3, no resumption and no early data: every connection is checked in full.
//! PEM files can take the place of the secret.

mod pem;
mod refused;
mod secret;
#[cfg(test)]
pub(crate) mod tests;
mod verify;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use quinn::crypto::rustls::{NoInitialCipherSuite, QuicClientConfig, QuicServerConfig};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ED25519, SerialNumber, date_time_ymd,
};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::{CryptoProvider, ring as provider};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;

pub use pem::PemFiles;
pub use refused::{RefusedTls, explain};
pub use secret::{ClusterName, ClusterSecret, SecretError};

use verify::{Credentials, Current, Trust};

/// The application protocol of every connection between nodes. The number changes when the first bytes do.
pub const ALPN: &[u8] = b"roomcast/1";

/// How long the certificates live that a node signs for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateConfig {
    /// How far a certificate's validity reaches back, so that nodes with a slow clock accept it. Default is 1 h. Cost
    /// of more: none to speak of.
    pub backdate: Duration,
    /// How long a certificate is valid from now on. Default is 24 h. It is renewed at half of that. Cost of more: a
    /// stolen key of a certificate is of use for longer; of less: nodes with a fast clock refuse it sooner.
    pub lifetime: Duration,
}

impl Default for CertificateConfig {
    fn default() -> Self {
        Self { backdate: Duration::from_secs(3600), lifetime: Duration::from_secs(24 * 3600) }
    }
}

/// Who this node is to others and whom it accepts: its certificate, its key and the trusted authorities.
///
/// All of it can change while the node runs; new handshakes use the new, connections that stand are left alone.
///
/// - Construction: [`Identity::from_secret`], [`Identity::from_pem_files`].
/// - Commands, from one task now and then: [`Identity::renew`] when [`Identity::renew_due`] says so,
///   [`Identity::reload_if_changed`] for files.
/// - Getters: [`Identity::server_config`] and [`Identity::client_config`] (taken once, they follow every change),
///   [`Identity::cluster`], [`Identity::not_after`].
pub struct Identity {
    cluster: ClusterName,
    provider: Arc<CryptoProvider>,
    source: Source,
    current: Arc<Current>,
    server: Arc<QuicServerConfig>,
    client: Arc<QuicClientConfig>,
}

/// Where the next certificate comes from.
enum Source {
    Secret { issuer: Box<Issuer<'static, KeyPair>>, trust: Trust, config: CertificateConfig },
    Pem(pem::PemSource),
}

impl Identity {
    /// Signs a certificate with the authority of `secret`. The authorities of `also_accepted` are trusted as well, so
    /// that secrets can be changed without a stop: first every node accepts the new one, then signs with it, then
    /// forgets the old one.
    ///
    /// # Errors
    /// [`TlsError`] when `config` reaches outside the years 1970 to 9999 or the operating system gives no randomness.
    pub fn from_secret(
        cluster: ClusterName,
        secret: &ClusterSecret,
        also_accepted: &[ClusterSecret],
        config: CertificateConfig,
        now: SystemTime,
    ) -> Result<Self, TlsError> {
        let provider = crypto_provider();
        let issuer = Box::new(Issuer::new(ca_params(), secret.ca_key()?));
        let authorities: Result<Vec<_>, _> =
            std::iter::once(secret).chain(also_accepted).map(ca_certificate).collect();
        let trust = Trust::new(authorities?, &provider)?;
        let name = certificate_name(&cluster)?;
        let credentials = mint(&issuer, &trust, &config, &cluster, &provider, now)?;
        Self::new(cluster, name, provider, Source::Secret { issuer, trust, config }, credentials)
    }

    /// Reads certificate, key and authorities from PEM files.
    ///
    /// # Errors
    /// [`TlsError::Pem`] when a file cannot be read, the files do not fit together, or the certificate is not good for
    /// `node.<cluster>.roomcast` in both roles at the time `now`.
    pub fn from_pem_files(cluster: ClusterName, files: PemFiles, now: SystemTime) -> Result<Self, TlsError> {
        let provider = crypto_provider();
        let name = certificate_name(&cluster)?;
        let path = files.cert.clone();
        let source = pem::PemSource::new(files);
        let credentials = source
            .load_if_changed(&name, &provider, now)?
            .ok_or_else(|| TlsError::Pem { path, reason: "it was not read".into() })?;
        Self::new(cluster, name, provider, Source::Pem(source), credentials)
    }

    fn new(
        cluster: ClusterName,
        name: ServerName<'static>,
        provider: Arc<CryptoProvider>,
        source: Source,
        credentials: Credentials,
    ) -> Result<Self, TlsError> {
        let current = Arc::new(Current { name, credentials: ArcSwap::from_pointee(credentials) });
        let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(current.clone())
            .with_cert_resolver(current.clone());
        server.alpn_protocols = vec![ALPN.to_vec()];
        // A resumed session would skip the check of certificates that have changed or expired since.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.max_early_data_size = 0;

        let mut client = rustls::ClientConfig::builder_with_provider(provider.clone())
            .with_protocol_versions(&[&TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(current.clone())
            .with_client_cert_resolver(current.clone());
        client.alpn_protocols = vec![ALPN.to_vec()];
        client.resumption = Resumption::disabled();
        client.enable_early_data = false;

        let (server, client) = (Arc::new(server.try_into()?), Arc::new(client.try_into()?));
        Ok(Self { cluster, provider, source, current, server, client })
    }

    /// Takes a new certificate into use: signs one for a fresh key, or reads the PEM files if they have changed.
    ///
    /// # Errors
    /// [`TlsError`] as at construction; the certificate in use stays.
    pub fn renew(&self, now: SystemTime) -> Result<(), TlsError> {
        match &self.source {
            Source::Secret { issuer, trust, config } => {
                let credentials = mint(issuer, trust, config, &self.cluster, &self.provider, now)?;
                self.current.credentials.store(Arc::new(credentials));
                Ok(())
            }
            Source::Pem(_) => self.reload_if_changed(now).map(drop),
        }
    }

    /// Whether it is time for [`Identity::renew`]: half of a signed certificate's life is over. Always false with PEM
    /// files, which somebody else renews.
    pub fn renew_due(&self, now: SystemTime) -> bool {
        match &self.source {
            Source::Secret { config, .. } => {
                now.checked_add(config.lifetime / 2).is_none_or(|t| t >= self.not_after())
            }
            Source::Pem(_) => false,
        }
    }

    /// Reads the PEM files again and takes them into use if they have changed; says whether it did. Always false with
    /// a secret. Reads files, so keep it off the threads that must not wait; every 10 s is often enough.
    ///
    /// # Errors
    /// [`TlsError::Pem`] when they are not good; what is in use stays, and the next call tries again.
    pub fn reload_if_changed(&self, now: SystemTime) -> Result<bool, TlsError> {
        let Source::Pem(source) = &self.source else { return Ok(false) };
        let Some(credentials) = source.load_if_changed(&self.current.name, &self.provider, now)? else {
            return Ok(false);
        };
        self.current.credentials.store(Arc::new(credentials));
        Ok(true)
    }

    /// The cluster that the certificates are for.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// When the certificate in use expires.
    pub fn not_after(&self) -> SystemTime {
        self.current.credentials.load().not_after
    }

    /// TLS for accepting, without transport settings. It follows later renewals.
    pub fn server_config(&self) -> quinn::ServerConfig {
        quinn::ServerConfig::with_crypto(self.server.clone())
    }

    /// TLS for dialing, without transport settings. It follows later renewals.
    pub fn client_config(&self) -> quinn::ClientConfig {
        quinn::ClientConfig::new(self.client.clone())
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("cluster", &self.cluster).finish_non_exhaustive()
    }
}

/// Checks that a peer's certificate is for this cluster. The handshake has done so already; this is for whoever holds
/// a connection and wants to be sure.
///
/// # Errors
/// [`RefusedTls`] when the peer showed no certificate or one for another name.
pub fn verify_peer_name(connection: &quinn::Connection, cluster: &ClusterName) -> Result<(), RefusedTls> {
    let chain =
        connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'static>>>().ok());
    verify_chain_name(chain.as_ref().map_or(&[][..], |chain| chain), cluster)
}

fn verify_chain_name(chain: &[CertificateDer<'_>], cluster: &ClusterName) -> Result<(), RefusedTls> {
    let Some(cert) = chain.first() else {
        return Err(RefusedTls::OtherTls("the peer showed no certificate".into()));
    };
    let unusable = |error: &dyn fmt::Display| RefusedTls::OtherTls(error.to_string());
    let cert = ParsedCertificate::try_from(cert).map_err(|error| unusable(&error))?;
    let name = certificate_name(cluster).map_err(|error| unusable(&error))?;
    verify_server_name(&cert, &name).map_err(|_| RefusedTls::OtherCluster)
}

/// What can go wrong with a node's own identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// The name of the cluster is not a DNS label. The node does not start.
    #[error(
        "name the cluster {0:?}: use 1 to {max} of a-z, 0-9 and '-', not '-' at the ends, like \"chat-prod\"",
        max = ClusterName::MAX_LEN
    )]
    ClusterName(String),
    /// No key came out of the secret. The node does not start.
    #[error("derive the key of the cluster from its secret")]
    Derive,
    /// The validity is outside what a certificate can say. The node does not start, or keeps its certificate.
    #[error(
        "sign a certificate: its time is not between 1970 and 9999; see to the clock and the configured lifetime"
    )]
    Validity,
    /// A certificate could not be signed. The node does not start, or keeps its certificate.
    #[error("sign a certificate: {0}")]
    Sign(#[from] rcgen::Error),
    /// An authority is not usable. The node does not start, or keeps those that it has.
    #[error("trust the certificate authority: {0}")]
    Authority(String),
    /// TLS does not take the key or the settings. The node does not start, or keeps its certificate.
    #[error("set up TLS: {0}")]
    Rustls(#[from] rustls::Error),
    /// TLS has no cipher that QUIC can begin with. The node does not start.
    #[error("set up TLS: {0}")]
    Cipher(#[from] NoInitialCipherSuite),
    /// A PEM file is missing or not good. The node does not start, or keeps the certificate and authorities it has.
    #[error("use {}: {reason}", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// The ciphers, chosen here and not by a default of the process that a user may have set.
fn crypto_provider() -> Arc<CryptoProvider> {
    use provider::cipher_suite::*;
    // AES-128 first: it needs 10 rounds a block where AES-256 needs 14, and the acceptor's order decides.
    let cipher_suites =
        vec![TLS13_AES_128_GCM_SHA256, TLS13_AES_256_GCM_SHA384, TLS13_CHACHA20_POLY1305_SHA256];
    Arc::new(CryptoProvider { cipher_suites, ..provider::default_provider() })
}

/// `node.<cluster>.roomcast` as rustls wants it.
fn certificate_name(cluster: &ClusterName) -> Result<ServerName<'static>, TlsError> {
    ServerName::try_from(cluster.server_name()).map_err(|_| TlsError::ClusterName(cluster.to_string()))
}

/// The authority's certificate. Nothing in it depends on the node or the time, so all nodes make the same one. It is
/// never sent: only its subject and key count.
fn ca_certificate(secret: &ClusterSecret) -> Result<CertificateDer<'static>, TlsError> {
    Ok(ca_params().self_signed(&secret.ca_key()?)?.into())
}

fn ca_params() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "roomcast cluster CA");
    params.serial_number = Some(SerialNumber::from(1));
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(9999, 12, 31);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Signs a certificate for a fresh key.
fn mint(
    issuer: &Issuer<'static, KeyPair>,
    trust: &Trust,
    config: &CertificateConfig,
    cluster: &ClusterName,
    provider: &CryptoProvider,
    now: SystemTime,
) -> Result<Credentials, TlsError> {
    let not_before = now.checked_sub(config.backdate).filter(|time| *time >= UNIX_EPOCH);
    let not_after = now.checked_add(config.lifetime).filter(|time| *time <= UNIX_EPOCH + verify::END_OF_TIME);
    let (Some(not_before), Some(not_after)) = (not_before, not_after) else { return Err(TlsError::Validity) };

    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::new([cluster.server_name()])?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "roomcast node");
    params.not_before = not_before.into();
    params.not_after = not_after.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let cert = params.signed_by(&key, issuer)?;

    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let leaf = Arc::new(CertifiedKey::new(vec![cert.into()], provider.key_provider.load_private_key(key)?));
    Ok(Credentials { leaf, not_after, trust: trust.clone() })
}
