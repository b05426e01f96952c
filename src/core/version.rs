//! Which version of the protocol two nodes speak with each other.

use std::fmt;

use crate::core::frame::{PROTOCOL, PROTOCOL_MIN};

/// A range of protocol versions, both ends included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Protocols {
    /// The oldest.
    pub min: u16,
    /// The newest. Two sides speak the newest that both have.
    pub max: u16,
}

/// A newest version that this build cannot hold itself to. Nothing was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("speak protocol version {got} at most: this build speaks {} (protocol.max)", Protocols::default())]
pub struct ProtocolError {
    /// The version given.
    pub got: u16,
}

impl Default for Protocols {
    /// All that this build speaks.
    fn default() -> Self {
        Self { min: PROTOCOL_MIN, max: PROTOCOL }
    }
}

impl Protocols {
    /// What this build speaks, up to `max`.
    ///
    /// # Errors
    /// [`ProtocolError`], when that is nothing, or more than it speaks.
    pub fn up_to(max: u16) -> Result<Self, ProtocolError> {
        let all = Self::default();
        let fits = (all.min..=all.max).contains(&max);
        if fits { Ok(Self { max, ..all }) } else { Err(ProtocolError { got: max }) }
    }

    /// What both speak; none when that is nothing, or `other` is no range.
    pub fn common(self, other: Self) -> Option<Self> {
        let common = Self { min: self.min.max(other.min), max: self.max.min(other.max) };
        (common.min <= common.max).then_some(common)
    }
}

impl fmt::Display for Protocols {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.min, self.max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_sides_speak_the_newest_that_both_have() {
        let range = |min, max| Protocols { min, max };
        for (ours, theirs, newest) in [
            (range(1, 2), range(1, 2), Some(2)),
            (range(1, 2), range(1, 1), Some(1)),
            (range(1, 1), range(1, 9), Some(1)),
            (range(2, 3), range(1, 2), Some(2)),
            (range(1, 2), range(3, 9), None),
            (range(3, 4), range(1, 2), None),
            // No range at all.
            (range(1, 2), range(2, 1), None),
            (range(1, 2), range(0, 0), None),
        ] {
            assert_eq!(ours.common(theirs).map(|common| common.max), newest, "{ours} and {theirs}");
            assert_eq!(ours.common(theirs), theirs.common(ours));
        }
    }

    #[test]
    fn a_build_can_be_held_to_an_older_version_that_it_speaks() {
        assert_eq!(Protocols::up_to(PROTOCOL), Ok(Protocols::default()));
        assert_eq!(Protocols::up_to(PROTOCOL_MIN).unwrap().to_string(), "1 to 1");
        for got in [0, PROTOCOL + 1, u16::MAX] {
            assert_eq!(Protocols::up_to(got), Err(ProtocolError { got }));
        }
        let error = ProtocolError { got: 9 }.to_string();
        assert_eq!(error, "speak protocol version 9 at most: this build speaks 1 to 2 (protocol.max)");
    }
}
