//! Why the TLS of a link was refused, in words that help on both sides.

use quinn::{ConnectionError, TransportErrorCode};

/// Why two nodes did not get past TLS. The side that refused and the side that was refused get the same reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusedTls {
    /// The certificate of one side is not from the authority of the other. There is no link.
    #[error(
        "the other node has another cluster secret (or certificate authority): give every node the same \
         ROOMCAST_SECRET, or keep a node of another cluster from dialling this address"
    )]
    OtherSecret,
    /// The secret is the same, the cluster name in the certificate is not. There is no link.
    #[error(
        "the other node has the same secret but another cluster name: give both the same name, or other secrets"
    )]
    OtherCluster,
    /// A certificate has expired or is not valid yet. There is no link.
    #[error(
        "the certificate of one node is not valid at this time: compare the clocks of both machines, then see \
         whether that node still renews its certificate"
    )]
    CertificateExpired,
    /// Anything else: what TLS said. There is no link.
    #[error("the TLS handshake failed: {0}")]
    OtherTls(String),
}

/// What a failed connection says about TLS, on the side that refused as well as on the refused one; `None` when the
/// connection ended for a reason outside TLS.
///
/// A refused acceptor sees the reason when it accepts. A refused dialer may see it only *after* its dial succeeded:
/// in TLS 1.3 the acceptor checks the dialer's certificate last (RFC 8446, section 4.4). A link is up for the dialer
/// when it hears the acceptor's first bytes.
pub fn explain(error: &ConnectionError) -> Option<RefusedTls> {
    let (code, text) = match error {
        ConnectionError::TransportError(error) => (error.code, error.reason.clone()),
        ConnectionError::ConnectionClosed(close) => {
            (close.error_code, String::from_utf8_lossy(&close.reason).into_owned())
        }
        _ => return None,
    };
    explain_alert(alert(code)?, &text)
}

/// The TLS alert in an error code of QUIC (RFC 9001, section 4.8).
fn alert(code: TransportErrorCode) -> Option<u8> {
    let code = u64::from(code);
    (0x100..0x200).contains(&code).then_some(code as u8)
}

fn explain_alert(alert: u8, text: &str) -> Option<RefusedTls> {
    Some(match alert {
        UNKNOWN_CA => RefusedTls::OtherSecret,
        ACCESS_DENIED => RefusedTls::OtherCluster,
        CERTIFICATE_EXPIRED => RefusedTls::CertificateExpired,
        CERTIFICATE_REQUIRED => {
            RefusedTls::OtherTls("the dialer sent no certificate: it is not a node".into())
        }
        NO_APPLICATION_PROTOCOL => RefusedTls::OtherTls(
            "the other side speaks another protocol: it is no node of this version".into(),
        ),
        _ => RefusedTls::OtherTls(format!("alert {alert}: {}", printable(text))),
    })
}

/// The text may come from the network before anyone is authenticated: short, and without control characters.
fn printable(text: &str) -> String {
    text.chars().take(MAX_TEXT).map(|c| if c.is_control() { '?' } else { c }).collect()
}

/// The longest text of a peer that is kept, in characters.
const MAX_TEXT: usize = 200;

// Alerts of RFC 8446, section 6. `verify.rs` sees to it that the first two mean only this.
const UNKNOWN_CA: u8 = 48;
const ACCESS_DENIED: u8 = 49;
const CERTIFICATE_EXPIRED: u8 = 45;
const CERTIFICATE_REQUIRED: u8 = 116;
const NO_APPLICATION_PROTOCOL: u8 = 120;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alerts_become_reasons() {
        assert_eq!(alert(TransportErrorCode::crypto(48)), Some(48));
        assert_eq!(alert(TransportErrorCode::PROTOCOL_VIOLATION), None);
        assert_eq!(explain_alert(48, "x"), Some(RefusedTls::OtherSecret));
        assert_eq!(explain_alert(49, "x"), Some(RefusedTls::OtherCluster));
        assert_eq!(explain_alert(45, "x"), Some(RefusedTls::CertificateExpired));
        assert_eq!(explain(&ConnectionError::TimedOut), None);
    }

    #[test]
    fn text_of_strangers_is_cut_and_cleaned() {
        let Some(RefusedTls::OtherTls(text)) = explain_alert(42, &format!("a\n\x1b[31m{}", "b".repeat(5000)))
        else {
            panic!("another reason");
        };
        assert!(text.starts_with("alert 42: a??[31mbbb") && text.len() < 250, "{text}");
    }
}
