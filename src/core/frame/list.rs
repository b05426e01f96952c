//! Lists in heads. The length on the wire is a peer's claim: it is no reason to reserve memory.

use std::fmt;
use std::marker::PhantomData;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use smallvec::{Array, SmallVec};

/// Reads a list item by item, so that what is held is bounded by the bytes that are there. The own implementation of
/// `SmallVec` reserves what the length says: 5 bytes could ask for 64 GiB.
pub(super) fn read<'de, D, A>(deserializer: D) -> Result<SmallVec<A>, D::Error>
where
    D: Deserializer<'de>,
    A: Array,
    A::Item: Deserialize<'de>,
{
    deserializer.deserialize_seq(Items(PhantomData))
}

struct Items<A>(PhantomData<A>);

impl<'de, A> Visitor<'de> for Items<A>
where
    A: Array,
    A::Item: Deserialize<'de>,
{
    type Value = SmallVec<A>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut seq: S) -> Result<Self::Value, S::Error> {
        let mut items = SmallVec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(items)
    }
}

#[cfg(test)]
mod tests {
    use serde::de::value::{Error, SeqDeserializer};

    use super::*;

    /// Two numbers that claim to be more than any memory holds.
    struct Claim(u32);

    impl Iterator for Claim {
        type Item = u32;

        fn next(&mut self) -> Option<u32> {
            self.0 += 1;
            (self.0 <= 2).then_some(self.0)
        }

        fn size_hint(&self) -> (usize, Option<usize>) {
            let left = if self.0 < 2 { usize::MAX / 2 } else { 0 };
            (left, Some(left))
        }
    }

    #[test]
    fn a_long_length_reserves_nothing() {
        let list: SmallVec<[u32; 1]> = read(SeqDeserializer::<_, Error>::new(Claim(0))).unwrap();
        assert_eq!(list.to_vec(), [1, 2]);
        assert!(list.capacity() < 100);
        type Plain = SmallVec<[u32; 1]>;
        assert!(
            Plain::deserialize(SeqDeserializer::<_, Error>::new(Claim(0))).is_err(),
            "no need for `read`"
        );
    }
}
