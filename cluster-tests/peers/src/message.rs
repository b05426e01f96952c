//! What is sent: a number with marks, a length, and filler up to the size that is measured.

use crate::Outcome;

/// Bytes in front of the filler: the word and the length.
pub(crate) const HEAD: usize = 12;
/// The receiver sends it back at once.
pub(crate) const ECHO: u64 = 1 << 63;
/// The receiver says how many have come.
pub(crate) const ACK: u64 = 1 << 62;
/// With [`ACK`]: this is the last of a round, so that the numbers can be added up.
pub(crate) const FINAL: u64 = 1 << 61;
/// To see whether there is a way; counts for nothing.
pub(crate) const PROBE: u64 = 1 << 60;
/// The largest message, in bytes. What says it is longer is none of ours.
const MAX: usize = 1 << 20;

/// One message, without its filler.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Message {
    /// The number and the marks.
    pub(crate) word: u64,
    /// All bytes of it, head included.
    pub(crate) length: usize,
}

impl Message {
    /// Appends its bytes.
    pub(crate) fn write(self, to: &mut Vec<u8>) {
        let end = to.len() + self.length.max(HEAD);
        to.extend_from_slice(&self.word.to_le_bytes());
        to.extend_from_slice(&(self.length as u32).to_le_bytes());
        to.resize(end, 7);
    }

    /// Its bytes.
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.length);
        self.write(&mut bytes);
        bytes
    }

    /// From a whole message; nothing when it is not one.
    pub(crate) fn read(bytes: &[u8]) -> Option<Self> {
        Self::head(bytes).filter(|message| message.length == bytes.len())
    }

    fn head(bytes: &[u8]) -> Option<Self> {
        let word = u64::from_le_bytes(*bytes.first_chunk()?);
        let length = u32::from_le_bytes(*bytes.get(8..)?.first_chunk()?) as usize;
        Some(Self { word, length })
    }

    /// The number without the marks.
    pub(crate) fn number(self) -> u64 {
        self.word & (PROBE - 1)
    }

    /// Whether it has this mark.
    pub(crate) fn is(self, mark: u64) -> bool {
        self.word & mark != 0
    }
}

/// Cuts messages out of a stream of bytes.
#[derive(Default)]
pub(crate) struct Cutter {
    /// A message that has not come whole.
    rest: Vec<u8>,
}

impl Cutter {
    /// Hands over each message that is whole with these bytes.
    ///
    /// # Errors
    /// A length that no message has.
    pub(crate) fn feed(&mut self, mut bytes: &[u8], sink: &dyn Fn(Message)) -> Outcome<()> {
        while !self.rest.is_empty() && !bytes.is_empty() {
            let wanted = Message::head(&self.rest).map_or(Ok(HEAD), length)?;
            let take = (wanted - self.rest.len()).min(bytes.len());
            self.rest.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if let Some(message) = Message::head(&self.rest)
                && length(message)? == self.rest.len()
            {
                sink(message);
                self.rest.clear();
            }
        }
        while let Some(message) = Message::head(bytes) {
            let Some((_, after)) = bytes.split_at_checked(length(message)?) else { break };
            sink(message);
            bytes = after;
        }
        self.rest.extend_from_slice(bytes);
        Ok(())
    }
}

fn length(message: Message) -> Outcome<usize> {
    let fits = (HEAD..=MAX).contains(&message.length);
    fits.then_some(message.length).ok_or_else(|| format!("read a message of {} bytes", message.length).into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    #[test]
    fn messages_come_whole_however_the_stream_is_cut() {
        let messages: Vec<Message> =
            (0..20).map(|word| Message { word, length: HEAD + (word as usize * 7) % 90 }).collect();
        let mut bytes = Vec::new();
        messages.iter().for_each(|message| message.write(&mut bytes));
        for size in 1..bytes.len() {
            let (seen, mut cutter) = (RefCell::new(Vec::new()), Cutter::default());
            for chunk in bytes.chunks(size) {
                cutter.feed(chunk, &|message| seen.borrow_mut().push(message)).unwrap();
            }
            assert_eq!(*seen.borrow(), messages, "cut by {size}");
        }
    }

    #[test]
    fn a_length_that_no_message_has_is_an_error() {
        let bytes = [0xff; HEAD];
        assert!(Cutter::default().feed(&bytes, &|_| ()).is_err());
    }
}
