//! The small value that a user sets for a socket.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;
use socketioxide_core::Sid;

use crate::error::DataError;
use crate::hub::lock;

/// The values of the sockets of one namespace here.
pub(super) struct DataTable {
    limit: usize,
    /// Held while a socket gets its place. Nothing that is dropped takes it.
    giving: Mutex<()>,
    sockets: Mutex<HashMap<Sid, Weak<SocketData>>>,
}

/// The value of one socket. Lives in the extensions of the socket, and goes with it.
pub(super) struct SocketData {
    sid: Sid,
    value: Mutex<Bytes>,
    table: Weak<DataTable>,
}

impl DataTable {
    /// No values; each may have `limit` bytes.
    pub(super) fn new(limit: usize) -> Arc<Self> {
        Arc::new(Self { limit, giving: Mutex::default(), sockets: Mutex::default() })
    }

    /// Checks the length of a value.
    pub(super) fn check(&self, got: usize) -> Result<(), DataError> {
        if got > self.limit { Err(DataError { got, limit: self.limit }) } else { Ok(()) }
    }

    /// The value of a socket; empty when none was set.
    pub(super) fn get(&self, sid: Sid) -> Bytes {
        // Dropped after the lock: it may be the last one.
        let data = lock(&self.sockets).get(&sid).and_then(Weak::upgrade);
        data.map(|data| data.get()).unwrap_or_default()
    }

    /// The place for the value of a socket. `kept` says which one the socket has already, `keep` gives it one; both run
    /// under one lock, so that a socket gets one; values may be dropped meanwhile.
    pub(super) fn of(
        self: &Arc<Self>,
        sid: Sid,
        kept: impl FnOnce() -> Option<Arc<SocketData>>,
        keep: impl FnOnce(Arc<SocketData>),
    ) -> Arc<SocketData> {
        let _giving = lock(&self.giving);
        if let Some(kept) = kept() {
            return kept;
        }
        let data = Arc::new(SocketData { sid, value: Mutex::default(), table: Arc::downgrade(self) });
        lock(&self.sockets).insert(sid, Arc::downgrade(&data));
        keep(Arc::clone(&data));
        data
    }

    /// The sockets with a value.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        lock(&self.sockets).len()
    }
}

impl SocketData {
    /// The value.
    pub(super) fn get(&self) -> Bytes {
        lock(&self.value).clone()
    }

    /// Sets the value, whatever its length.
    pub(super) fn set(&self, value: Bytes) {
        *lock(&self.value) = value;
    }
}

impl Drop for SocketData {
    fn drop(&mut self) {
        let Some(table) = self.table.upgrade() else { return };
        let mut sockets = lock(&table.sockets);
        // A new socket may have the same id: it has a place of its own.
        if sockets.get(&self.sid).is_some_and(|other| std::ptr::eq(other.as_ptr(), self)) {
            sockets.remove(&self.sid);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_with_its_socket_and_not_with_the_next_of_the_same_id() {
        let table = DataTable::new(4);
        assert_eq!((table.check(4), table.check(5)), (Ok(()), Err(DataError { got: 5, limit: 4 })));
        let sid = Sid::new();
        let first = table.of(sid, || None, drop);
        first.set(Bytes::from_static(b"one"));
        assert!(Arc::ptr_eq(&first, &table.of(sid, || Some(Arc::clone(&first)), |_| unreachable!())));
        assert_eq!(table.get(sid), "one");
        let second = table.of(sid, || None, drop);
        second.set(Bytes::from_static(b"two"));
        drop(first);
        assert_eq!((table.get(sid), table.len()), (Bytes::from_static(b"two"), 1));
        drop(second);
        assert_eq!((table.get(sid), table.len()), (Bytes::new(), 0));
    }

    /// The extensions of a socket are locked while it drops its value (`clear`), and while its value is looked for.
    #[test]
    fn a_value_may_be_dropped_while_another_is_looked_for() {
        let table = DataTable::new(4);
        let first = table.of(Sid::new(), || None, drop);
        let (done, dropped) = std::sync::mpsc::channel();
        let kept = || {
            std::thread::spawn(move || {
                drop(first);
                done.send(()).unwrap();
            });
            dropped.recv_timeout(std::time::Duration::from_secs(10)).expect("it is dropped");
            None
        };
        let _second = table.of(Sid::new(), kept, drop);
        assert_eq!(table.len(), 1);
    }
}
