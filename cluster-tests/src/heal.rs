//! What the heal report is made of: what a node of any system notes while messages flow, and what follows from the notes
//! of all.
//!
//! * [`record`]: numbered messages and what is noted of them.
//! * [`evaluate`]: lost, duplicated, reordered; time to notice and to heal. Pure.
//! * [`station`]: a node process: emits steadily, obeys its standard input, says how far it is.
//!
//! All systems use the same code here; what differs is a [`station::Wire`]. `docs/faults.md` says how each number is
//! defined.

pub mod evaluate;
pub mod record;
pub mod station;
