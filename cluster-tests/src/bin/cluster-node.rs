//! One node in a process of its own, for clusters on real ground: it is started by tests, and speaks on its standard
//! input and output only.

use std::process::ExitCode;

fn main() -> ExitCode {
    cluster_tests::harness::processes::serve()
}
