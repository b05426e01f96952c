//! What this front reads of what other nodes send, for `crate::fuzz`.

use bytes::Bytes;
use socketioxide::AckError;
use socketioxide_core::Value;

use super::acks::read;
use super::inbound::{options, value};
use super::serve::selected;
use crate::core::frame::{BroadcastHead, PayloadKind};

const PARSERS: [PayloadKind; 2] = [PayloadKind::SocketIoText, PayloadKind::SocketIoBytes];

/// Packet value and selection of a broadcast or a request.
pub(crate) fn delivery(head: &BroadcastHead<'_>, payload: &Bytes) {
    let _ = (options(head), selected(head));
    for kind in PARSERS {
        let length = match value(kind, &head.attachments, payload) {
            Ok(Value::Str(text, attachments)) => {
                text.len() + attachments.iter().flatten().map(Bytes::len).sum::<usize>()
            }
            Ok(Value::Bytes(bytes)) => bytes.len(),
            Err(_) => continue,
        };
        assert_eq!(length, payload.len());
    }
}

/// The acknowledgement of a socket; whether it could be read.
pub(crate) fn acknowledgement(body: &Bytes) -> bool {
    PARSERS.into_iter().any(|kind| read::<AckError>(body, kind).is_ok())
}
