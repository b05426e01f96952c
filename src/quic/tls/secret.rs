//! The secret that a cluster shares, and the name of the cluster.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PKCS_ED25519};
use ring::hkdf;
use ring::rand::{SecureRandom, SystemRandom};
use rustls::pki_types::PrivatePkcs8KeyDer;

use super::TlsError;

/// What all nodes of a cluster share: whoever holds it can join, so treat it like a private key.
///
/// [`ClusterSecret::MIN_LEN`] to [`ClusterSecret::MAX_LEN`] bytes. Its text form is hexadecimal, two digits a byte in
/// either case: it survives shells, YAML and environment variables without quoting. `roomcast keygen` prints a fresh
/// one. `Debug` never shows it, and it is overwritten when dropped; that is best effort, since the environment, files
/// and buffers of the operating system may still hold copies.
#[derive(Clone)]
pub struct ClusterSecret(Vec<u8>);

impl ClusterSecret {
    /// The shortest secret, in bytes: the strength of the keys derived from it.
    pub const MIN_LEN: usize = 32;
    /// The longest secret, in bytes. More adds no strength.
    pub const MAX_LEN: usize = 1024;

    /// Makes a fresh secret of [`ClusterSecret::MIN_LEN`] bytes from the randomness of the operating system.
    ///
    /// # Errors
    /// [`SecretError::Random`] when the system has no randomness to give.
    pub fn generate() -> Result<Self, SecretError> {
        let mut secret = Self(vec![0; Self::MIN_LEN]);
        SystemRandom::new().fill(&mut secret.0).map_err(|_| SecretError::Random)?;
        Ok(secret)
    }

    /// Reads the text form from the environment variable `name`. White space around it is ignored.
    ///
    /// # Errors
    /// [`SecretError::NotSet`] without the variable or with an empty one, else as [`ClusterSecret::parse`].
    pub fn from_env(name: &str) -> Result<Self, SecretError> {
        let Some(value) = std::env::var_os(name) else {
            return Err(SecretError::NotSet { name: name.into() });
        };
        let origin = format!("environment variable {name}");
        let Some(text) = value.to_str() else { return Err(SecretError::Encoding { origin }) };
        if text.trim().is_empty() {
            return Err(SecretError::NotSet { name: name.into() });
        }
        Self::parse_from(text, origin)
    }

    /// Reads the text form from a file. White space around it, like a last newline, is ignored.
    ///
    /// # Errors
    /// [`SecretError::Unreadable`] when the file cannot be read, else as [`ClusterSecret::parse`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self, SecretError> {
        let path = path.as_ref();
        let unreadable = |source| SecretError::Unreadable { path: path.into(), source };
        // Room for some white space; whatever is longer is not a secret, so do not read all of a wrong file.
        let limit = 2 * Self::MAX_LEN as u64 + 64;
        let mut text = Vec::new();
        File::open(path).and_then(|file| file.take(limit).read_to_end(&mut text)).map_err(unreadable)?;
        let origin = format!("file {}", path.display());
        let secret = match std::str::from_utf8(&text) {
            Ok(text) => Self::parse_from(text, origin),
            Err(_) => Err(SecretError::Encoding { origin }),
        };
        wipe(&mut text);
        secret
    }

    /// Reads the text form. White space around it is ignored.
    ///
    /// # Errors
    /// [`SecretError::Encoding`] when it is not hexadecimal, [`SecretError::Length`] when it is too short or too long.
    pub fn parse(text: &str) -> Result<Self, SecretError> {
        Self::parse_from(text, "the given text".into())
    }

    /// Takes the bytes of a secret that is kept in another form.
    ///
    /// # Errors
    /// [`SecretError::Length`] when there are too few or too many.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Result<Self, SecretError> {
        Self::checked(Self(bytes.into()), "the given bytes".into())
    }

    /// The text form: two lowercase hexadecimal digits a byte. The result is not wiped; keep it as carefully.
    pub fn to_text(&self) -> String {
        let digit = |n: u8| char::from(HEX[usize::from(n)]);
        self.0.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
    }

    /// As [`ClusterSecret::parse`]; `origin` stands for the text in errors.
    pub(crate) fn parse_from(text: &str, origin: String) -> Result<Self, SecretError> {
        let text = text.trim().as_bytes();
        let value = |digit: u8| char::from(digit).to_digit(16);
        // Filled in place and owned by `Self` from the start, so that a bad digit late in the text leaves no copy.
        let mut secret = Self(Vec::with_capacity(text.len() / 2));
        for pair in text.chunks(2) {
            let &[high, low] = pair else { return Err(SecretError::Encoding { origin }) };
            let (Some(high), Some(low)) = (value(high), value(low)) else {
                return Err(SecretError::Encoding { origin });
            };
            secret.0.push((high << 4 | low) as u8);
        }
        secret.checked(origin)
    }

    fn checked(self, origin: String) -> Result<Self, SecretError> {
        if (Self::MIN_LEN..=Self::MAX_LEN).contains(&self.0.len()) {
            return Ok(self);
        }
        Err(SecretError::Length { origin, bytes: self.0.len() })
    }

    /// The key of the cluster's certificate authority: HKDF-SHA256 (RFC 5869) of the secret is the Ed25519 seed
    /// (RFC 8032), so every node derives the same one. The version in salt and info stands for the whole recipe.
    pub(super) fn ca_key(&self) -> Result<KeyPair, TlsError> {
        let mut pkcs8 = [0; PKCS8_ED25519.len() + SEED_LEN];
        let (prefix, seed) = pkcs8.split_at_mut(PKCS8_ED25519.len());
        prefix.copy_from_slice(PKCS8_ED25519);
        hkdf::Salt::new(hkdf::HKDF_SHA256, CA_SALT)
            .extract(&self.0)
            .expand(&[CA_INFO], hkdf::HKDF_SHA256)
            .and_then(|key| key.fill(seed))
            .map_err(|_| TlsError::Derive)?;
        let key = KeyPair::from_pkcs8_der_and_sign_algo(&PrivatePkcs8KeyDer::from(&pkcs8[..]), &PKCS_ED25519);
        wipe(&mut pkcs8);
        Ok(key?)
    }
}

impl Drop for ClusterSecret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(hidden)")
    }
}

/// Why a secret could not be had. No message holds a part of the secret.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The environment variable is missing or empty. The node does not start.
    #[error("read the cluster secret: set {name} to the output of `roomcast keygen`, the same on every node")]
    NotSet {
        /// The variable.
        name: String,
    },
    /// The file cannot be read. The node does not start.
    #[error("read the cluster secret from {}: {source}; put the output of `roomcast keygen` there", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The text is not hexadecimal. The node does not start.
    #[error(
        "read the cluster secret from {origin}: it is not hexadecimal, or a digit is missing; \
         use the output of `roomcast keygen` unchanged"
    )]
    Encoding {
        /// Where the text came from.
        origin: String,
    },
    /// The secret is too short to be safe, or too long. The node does not start.
    #[error(
        "read the cluster secret from {origin}: it has {bytes} bytes, not {} to {}; \
         use the output of `roomcast keygen`",
        ClusterSecret::MIN_LEN,
        ClusterSecret::MAX_LEN
    )]
    Length {
        /// Where the secret came from.
        origin: String,
        /// Its length in bytes.
        bytes: usize,
    },
    /// The operating system gave no randomness. No secret is made.
    #[error("make a cluster secret: the operating system gave no randomness")]
    Random,
}

/// The name of a cluster, the same on every node. A node of another name is refused even with the right secret.
///
/// 1 to 63 of `a-z`, `0-9` and `-`, not with `-` at either end: it is one label of the DNS name in the certificates.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct ClusterName(String);

impl ClusterName {
    /// The longest name, in bytes: the longest DNS label.
    pub const MAX_LEN: usize = 63;

    /// Checks a name.
    ///
    /// # Errors
    /// [`TlsError::ClusterName`] when it is empty, too long or has another character.
    pub fn new(name: impl AsRef<str>) -> Result<Self, TlsError> {
        let name = name.as_ref();
        let known = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let edge = name.starts_with('-') || name.ends_with('-');
        if name.is_empty() || name.len() > Self::MAX_LEN || edge || !name.bytes().all(known) {
            return Err(TlsError::ClusterName(name.chars().take(80).collect()));
        }
        Ok(Self(name.into()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The name in the certificate of every node of this cluster, `node.<cluster>.roomcast`: what to dial with.
    pub fn server_name(&self) -> String {
        format!("node.{}.roomcast", self.0)
    }
}

impl fmt::Display for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for ClusterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Overwrites bytes that are no longer needed. `black_box` keeps the compiler from leaving the writes out.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

const HEX: &[u8; 16] = b"0123456789abcdef";
const CA_SALT: &[u8] = b"roomcast cluster secret v1";
const CA_INFO: &[u8] = b"roomcast cluster ca ed25519 v1";
const SEED_LEN: usize = 32;
/// What stands before the seed in the PKCS#8 v1 form of an Ed25519 key (RFC 8410, section 7).
const PKCS8_ED25519: &[u8; 16] = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20";

#[cfg(test)]
mod tests {
    use rcgen::PublicKeyData;

    use super::*;

    #[test]
    fn text_and_bytes_round_trip() {
        let secret = ClusterSecret::generate().unwrap();
        let text = secret.to_text();
        assert_eq!(text.len(), 64);
        assert_eq!(ClusterSecret::parse(&format!(" {}\n", text.to_uppercase())).unwrap().0, secret.0);
        assert_ne!(ClusterSecret::generate().unwrap().0, secret.0);
        assert_eq!(ClusterSecret::from_bytes([0xa5; 33]).unwrap().to_text(), "a5".repeat(33));
    }

    #[test]
    fn debug_shows_nothing() {
        assert_eq!(format!("{:?}", ClusterSecret::from_bytes([7; 32]).unwrap()), "ClusterSecret(hidden)");
    }

    #[test]
    fn bad_secrets_say_what_to_do() {
        let message = |text: &str| ClusterSecret::parse(text).unwrap_err().to_string();
        assert_eq!(
            message("abcd"),
            "read the cluster secret from the given text: it has 2 bytes, not 32 to 1024; \
             use the output of `roomcast keygen`"
        );
        let secret = "Zm9v".repeat(16);
        assert!(message(&secret).contains("not hexadecimal"));
        assert!(!message(&secret).contains("Zm9v"));
        assert!(message(&"a".repeat(65)).contains("a digit is missing"));
        assert!(matches!(ClusterSecret::parse("\u{e9}"), Err(SecretError::Encoding { .. })));
        assert!(matches!(ClusterSecret::from_bytes([0; 1025]), Err(SecretError::Length { bytes: 1025, .. })));
        assert!(ClusterSecret::from_bytes([0; 1024]).is_ok());
    }

    #[test]
    fn from_environment() {
        let error = ClusterSecret::from_env("ROOMCAST_TEST_NOT_SET").unwrap_err().to_string();
        assert_eq!(
            error,
            "read the cluster secret: set ROOMCAST_TEST_NOT_SET to the output of `roomcast keygen`, \
             the same on every node"
        );
        // Any variable that is there: changing the environment of a running process is not safe.
        let error = ClusterSecret::from_env("PATH").unwrap_err().to_string();
        assert!(error.contains("environment variable PATH"), "{error}");
    }

    #[test]
    fn from_files() {
        let dir = super::super::tests::TempDir::new("secret");
        let path = dir.path("secret");
        std::fs::write(&path, format!("  {}\r\n", "0f".repeat(32))).unwrap();
        assert_eq!(ClusterSecret::from_file(&path).unwrap().0, [15; 32]);
        std::fs::write(&path, "0f".repeat(1_000_000)).unwrap();
        assert!(matches!(ClusterSecret::from_file(&path), Err(SecretError::Length { .. })));
        std::fs::write(&path, [0xff; 64]).unwrap();
        assert!(matches!(ClusterSecret::from_file(&path), Err(SecretError::Encoding { .. })));
        let error = ClusterSecret::from_file(dir.path("none")).unwrap_err().to_string();
        assert!(error.contains("none") && error.contains("roomcast keygen"), "{error}");
    }

    /// Nodes of different versions must derive the same key, or a rolling update splits the cluster.
    #[test]
    fn the_derived_key_never_changes() {
        let key = ClusterSecret::from_bytes([7; 32]).unwrap().ca_key().unwrap();
        let hex = ClusterSecret(key.der_bytes().to_vec()).to_text();
        assert_eq!(hex, "dfb6556e998b02b7d88810541acefa93d499b9dafa128dd378033be541703b9b");
    }

    #[test]
    fn cluster_names_are_dns_labels() {
        for name in ["a", "chat-prod", "0", &"x".repeat(63)] {
            assert!(ClusterName::new(name).is_ok(), "{name}");
        }
        for name in ["", "Chat", "a.b", "a_b", "-a", "a-", "\u{e9}", &"x".repeat(64)] {
            assert!(ClusterName::new(name).is_err(), "{name}");
        }
        assert_eq!(ClusterName::new("chat").unwrap().server_name(), "node.chat.roomcast");
    }
}
