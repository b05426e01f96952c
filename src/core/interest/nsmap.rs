//! A map by namespace that uses the hash a [`Namespace`] already carries.

use hashbrown::HashTable;

use crate::ids::Namespace;

/// Values by namespace. The order of iteration depends on the history of the map alone, not on hidden
/// randomness.
///
/// The hash is not secret, so the full path is compared: two paths with one hash are two namespaces.
#[derive(Clone, Debug)]
pub(in crate::core) struct NsMap<T>(HashTable<(Namespace, T)>);

impl<T> Default for NsMap<T> {
    fn default() -> Self {
        Self(HashTable::new())
    }
}

impl<T> NsMap<T> {
    /// The value of a namespace.
    pub(in crate::core) fn get(&self, ns: &Namespace) -> Option<&T> {
        self.0.find(hash(ns), |(other, _)| other == ns).map(|(_, value)| value)
    }

    /// The value of a namespace, to change.
    pub(in crate::core) fn get_mut(&mut self, ns: &Namespace) -> Option<&mut T> {
        self.0.find_mut(hash(ns), |(other, _)| other == ns).map(|(_, value)| value)
    }

    /// The value of a namespace, made when there is none yet.
    pub(in crate::core) fn get_or_insert_with(&mut self, ns: &Namespace, make: impl FnOnce() -> T) -> &mut T {
        let entry = self.0.entry(hash(ns), |(other, _)| other == ns, |(other, _)| hash(other));
        &mut entry.or_insert_with(|| (ns.clone(), make())).into_mut().1
    }

    /// Puts a value in, in place of an earlier one.
    pub(in crate::core) fn insert(&mut self, ns: &Namespace, value: T) {
        match self.get_mut(ns) {
            Some(held) => *held = value,
            None => {
                self.get_or_insert_with(ns, || value);
            }
        }
    }

    /// Takes the value of a namespace out. A map that became sparse gives memory back.
    pub(in crate::core) fn remove(&mut self, ns: &Namespace) -> Option<T> {
        let entry = self.0.find_entry(hash(ns), |(other, _)| other == ns).ok()?;
        let ((_, value), _) = entry.remove();
        if self.0.capacity() > 64 && self.0.len() < self.0.capacity() / 8 {
            self.0.shrink_to(self.0.len() * 2, |(other, _)| hash(other));
        }
        Some(value)
    }

    /// All pairs.
    pub(in crate::core) fn iter(&self) -> impl Iterator<Item = (&Namespace, &T)> {
        self.0.iter().map(|(ns, value)| (ns, value))
    }

    /// All pairs, taken out.
    pub(in crate::core) fn into_iter(self) -> impl Iterator<Item = (Namespace, T)> {
        self.0.into_iter()
    }

    /// The number of namespaces.
    pub(in crate::core) fn len(&self) -> usize {
        self.0.len()
    }
}

fn hash(ns: &Namespace) -> u64 {
    ns.everyone().0
}
