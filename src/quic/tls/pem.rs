//! Certificates from PEM files, for example those that cert-manager keeps up to date.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use ring::digest::{Context, SHA256};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::sign::CertifiedKey;

use super::TlsError;
use super::verify::{Credentials, Trust};

/// The three files of a node that has its certificate from somebody else.
#[derive(Clone, Debug)]
pub struct PemFiles {
    /// The certificates of the accepted authorities: one or, while one follows another, several.
    pub ca: PathBuf,
    /// This node's certificate for `node.<cluster>.roomcast`, good for client and server authentication, then what is
    /// between it and the authority.
    pub cert: PathBuf,
    /// The private key of that certificate, not encrypted.
    pub key: PathBuf,
}

/// The files and what was in them when they were last good.
pub(super) struct PemSource {
    files: PemFiles,
    seen: Mutex<Option<Digest>>,
}

type Digest = [u8; 32];

impl PemSource {
    /// Files that have not been read yet.
    pub(super) fn new(files: PemFiles) -> Self {
        Self { files, seen: Mutex::new(None) }
    }

    /// Reads the files; `None` when they are as they were the last time that they were good.
    ///
    /// Contents are compared, not times: a mounted Kubernetes Secret changes by a symbolic link. Files caught in the
    /// middle of a change do not fit together; that is an error, and the next call tries again.
    pub(super) fn load_if_changed(
        &self,
        name: &ServerName<'static>,
        provider: &Arc<CryptoProvider>,
        now: SystemTime,
    ) -> Result<Option<Credentials>, TlsError> {
        let [ca, cert, key] = [&self.files.ca, &self.files.cert, &self.files.key].map(|path| read(path));
        let (ca, cert, key) = (ca?, cert?, key?);
        let mut context = Context::new(&SHA256);
        for contents in [&ca, &cert, &key] {
            context.update(&contents.len().to_be_bytes());
            context.update(contents);
        }
        let digest = Digest::try_from(context.finish().as_ref()).ok();
        if digest.is_some() && *self.seen() == digest {
            return Ok(None);
        }
        let trust = Trust::new(certificates(&self.files.ca, &ca)?, provider)?;
        let leaf = self.leaf(&cert, &key, provider)?;
        let not_after = trust
            .check_own(&leaf.cert, name, now)
            .map_err(|error| self.unfit(&self.files.cert, format!("as {}: {error}", name.to_str())))?;
        *self.seen() = digest;
        Ok(Some(Credentials { leaf: Arc::new(leaf), not_after, trust }))
    }

    fn leaf(&self, cert: &[u8], key: &[u8], provider: &CryptoProvider) -> Result<CertifiedKey, TlsError> {
        let chain = certificates(&self.files.cert, cert)?;
        let key = PrivateKeyDer::from_pem_slice(key).map_err(|error| self.unfit(&self.files.key, error))?;
        let key = provider.key_provider.load_private_key(key).map_err(|e| self.unfit(&self.files.key, e))?;
        let leaf = CertifiedKey::new(chain, key);
        leaf.keys_match().map_err(|error| self.unfit(&self.files.key, error))?;
        Ok(leaf)
    }

    fn unfit(&self, path: &Path, error: impl ToString) -> TlsError {
        TlsError::Pem { path: path.into(), reason: error.to_string() }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Option<Digest>> {
        self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    let mut contents = Vec::new();
    std::fs::File::open(path)
        .and_then(|file| file.take(MAX_FILE as u64 + 1).read_to_end(&mut contents))
        .map_err(|error| TlsError::Pem { path: path.into(), reason: error.to_string() })?;
    if contents.len() > MAX_FILE {
        return Err(TlsError::Pem {
            path: path.into(),
            reason: format!("it is larger than {MAX_FILE} bytes"),
        });
    }
    Ok(contents)
}

fn certificates(path: &Path, contents: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unfit = |reason: String| TlsError::Pem { path: path.into(), reason };
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(contents).collect();
    let found = found.map_err(|error| unfit(error.to_string()))?;
    if found.is_empty() {
        return Err(unfit("there is no certificate in it".into()));
    }
    Ok(found)
}

/// The largest file, in bytes: some hundred certificates.
const MAX_FILE: usize = 1 << 20;
