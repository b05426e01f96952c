//! See `roomcast::fuzz`. Run with `cargo +nightly fuzz run admin` in `cluster-tests`.

#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| drop(roomcast::fuzz::run("admin", bytes)));
