//! What rustls asks at each handshake: which certificate to show, and whether the other one is good.
//!
//! Everything is read from one [`Current`], so a renewed certificate or authority counts from the next handshake on
//! and the QUIC endpoint never has to be touched. A handshake keeps what it began with.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme,
};

use super::TlsError;

/// The certificate to show and whom to trust, at one time.
pub(super) struct Credentials {
    /// This node's certificate, what is between it and the authority, and its key.
    pub(super) leaf: Arc<CertifiedKey>,
    /// When that certificate expires.
    pub(super) not_after: SystemTime,
    /// How the other side is checked.
    pub(super) trust: Trust,
}

/// The authorities that are accepted, as verifiers for both directions.
#[derive(Clone)]
pub(super) struct Trust {
    server: Arc<WebPkiServerVerifier>,
    client: Arc<dyn ClientCertVerifier>,
}

impl Trust {
    /// Accepts certificates of any of these authorities.
    pub(super) fn new(
        authorities: impl IntoIterator<Item = CertificateDer<'static>>,
        provider: &Arc<CryptoProvider>,
    ) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        for authority in authorities {
            roots.add(authority).map_err(|error| TlsError::Authority(error.to_string()))?;
        }
        let roots = Arc::new(roots);
        let wrong = |error: rustls::server::VerifierBuilderError| TlsError::Authority(error.to_string());
        Ok(Self {
            server: WebPkiServerVerifier::builder_with_provider(roots.clone(), provider.clone())
                .build()
                .map_err(wrong)?,
            client: WebPkiClientVerifier::builder_with_provider(roots, provider.clone())
                .build()
                .map_err(wrong)?,
        })
    }

    /// Checks the certificate that a dialed node shows.
    fn check_server(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.server.verify_server_cert(cert, intermediates, name, &[], now).map_err(refine)
    }

    /// Checks the certificate that a dialing node shows: the authority, then the same name as for a dialed one.
    fn check_client(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.client.verify_client_cert(cert, intermediates, now).map_err(refine)?;
        verify_server_name(&ParsedCertificate::try_from(cert)?, name).map_err(refine)?;
        Ok(verified)
    }

    /// Checks our own certificate the way peers will, in both roles, and says when it expires.
    pub(super) fn check_own(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        now: SystemTime,
    ) -> Result<SystemTime, Error> {
        let Some((cert, intermediates)) = chain.split_first() else {
            return Err(Error::NoCertificatesPresented);
        };
        let unix = now.duration_since(UNIX_EPOCH).unwrap_or_default();
        self.check_server(cert, intermediates, name, UnixTime::since_unix_epoch(unix))?;
        self.check_client(cert, intermediates, name, UnixTime::since_unix_epoch(unix))?;
        // The verifier publishes no dates of a certificate, but it says since when an expired one has been so.
        let end = UnixTime::since_unix_epoch(END_OF_TIME);
        let not_after = match self.server.verify_server_cert(cert, intermediates, name, &[], end) {
            Err(Error::InvalidCertificate(CertificateError::ExpiredContext { not_after, .. })) => not_after,
            _ => end,
        };
        Ok(UNIX_EPOCH + Duration::from_secs(not_after.as_secs()))
    }
}

/// Gives two reasons an alert that nothing else has, so that both sides can tell them from the rest:
/// `unknown_ca` for another authority, `access_denied` for another cluster.
fn refine(error: Error) -> Error {
    use CertificateError::*;
    let Error::InvalidCertificate(reason) = error else { return error };
    Error::InvalidCertificate(match reason {
        // All our authorities have the same subject, so a wrong one shows in the signature and not in its name.
        BadSignature | UnsupportedSignatureAlgorithmForPublicKeyContext { .. } => UnknownIssuer,
        NotValidForName | NotValidForNameContext { .. } => {
            tracing::debug!(reason = %reason, "certificate of another cluster");
            ApplicationVerificationFailure
        }
        other => other,
    })
}

/// The credentials in use, shared with rustls.
pub(super) struct Current {
    /// The name that every certificate of the cluster carries.
    pub(super) name: ServerName<'static>,
    /// Swapped as a whole: certificate and authorities always fit together.
    pub(super) credentials: ArcSwap<Credentials>,
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("name", &self.name).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.credentials.load().leaf.clone())
    }
}

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.credentials.load().leaf.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ServerCertVerifier for Current {
    fn verify_server_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _dialed: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Our own name and not the dialed one: no caller can dial into another cluster by mistake.
        self.credentials.load().trust.check_server(cert, intermediates, &self.name, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.credentials.load().trust.server.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.credentials.load().trust.server.supported_verify_schemes()
    }
}

impl ClientCertVerifier for Current {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // A node has one certificate and needs no hint which to send.
        &[]
    }

    fn verify_client_cert(
        &self,
        cert: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.credentials.load().trust.check_client(cert, intermediates, &self.name, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.credentials.load().trust.client.verify_tls13_signature(message, cert, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.credentials.load().trust.client.supported_verify_schemes()
    }
}

fn no_tls12() -> Error {
    Error::General("only TLS 1.3 is spoken".into())
}

/// The last second of the year 9999, the last that a certificate can name (RFC 5280, section 4.1.2.5).
pub(super) const END_OF_TIME: Duration = Duration::from_secs(253_402_300_799);
