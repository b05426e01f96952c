//! Zenoh, peers that are linked directly, over TCP or QUIC. Many messages go through a publisher that gathers them, single
//! ones through one that does not (express); both wait rather than drop.

use rcgen::{CertificateParams, KeyPair};
use zenoh::bytes::Encoding;
use zenoh::pubsub::{Publisher, Subscriber};
use zenoh::qos::CongestionControl;
use zenoh::sample::Sample;
use zenoh::{Config, Session};

use super::{Place, Sink, Wire};
use crate::Outcome;
use crate::message::Message;

pub(crate) struct Zenoh {
    many: Publisher<'static>,
    single: Publisher<'static>,
    _subscriber: Subscriber<()>,
    _session: Session,
}

impl Wire for Zenoh {
    async fn open(mut place: Place, sink: Sink) -> Outcome<Self> {
        let (listens, to) = place.names();
        let mut config = Config::default();
        let mut set = |key: &str, value: serde_json::Value| config.insert_json5(key, &value.to_string());
        set("mode", "peer".into())?;
        set("scouting/multicast/enabled", false.into())?;
        set("scouting/gossip/enabled", false.into())?;
        let endpoint = format!("{}/{}", place.variant, place.address);
        let mut notice = String::new();
        if place.bound.is_some() {
            set("listen/endpoints", vec![endpoint].into())?;
            if place.variant == "quic" {
                let key = KeyPair::generate()?;
                // It vouches for itself: receivers have it as their root.
                let params = CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
                notice = base64(params.self_signed(&key)?.pem().as_bytes());
                let private = base64(key.serialize_pem().as_bytes());
                set("transport/link/tls/listen_private_key_base64", private.into())?;
                set("transport/link/tls/listen_certificate_base64", notice.clone().into())?;
            }
        } else {
            set("connect/endpoints", vec![endpoint].into())?;
            set("listen/endpoints", Vec::<String>::new().into())?;
            if place.variant == "quic" {
                set("transport/link/tls/root_ca_certificate_base64", place.notice.clone().into())?;
            }
        }
        let session = zenoh::open(config).await?;
        let take = move |sample: Sample| {
            Message::read(&sample.payload().to_bytes()).into_iter().for_each(|message| sink(message));
        };
        let subscriber = session.declare_subscriber(listens).callback(take).await?;
        let many = publisher(&session, to, false).await?;
        let single = publisher(&session, to, true).await?;
        place.announce(&notice);
        Ok(Self { many, single, _subscriber: subscriber, _session: session })
    }

    async fn send(&mut self, messages: &[Message]) -> Outcome<()> {
        for message in messages {
            self.many.put(message.bytes()).await?;
        }
        Ok(())
    }

    async fn send_now(&mut self, message: Message) -> Outcome<()> {
        self.single.put(message.bytes()).await
    }
}

async fn publisher(session: &Session, to: &'static str, express: bool) -> Outcome<Publisher<'static>> {
    let publisher = session.declare_publisher(to).encoding(Encoding::ZENOH_BYTES).express(express);
    publisher.congestion_control(CongestionControl::Block).await
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let group =
            chunk.iter().fold(0, |group, byte| group << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for at in 0..4 {
            let letter = LETTERS[(group >> (18 - 6 * at)) as usize & 63] as char;
            text.push(if at <= chunk.len() { letter } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_examples_of_rfc_4648() {
        let pairs = [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ];
        for (bytes, text) in pairs {
            assert_eq!(super::base64(bytes.as_bytes()), text);
        }
    }
}
