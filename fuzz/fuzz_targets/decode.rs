//! Client messages: any bytes give a message or a typed error (I11).
//!
//! `cargo +nightly fuzz run decode fuzz/corpus/decode fuzz/seeds/decode -- -dict=fuzz/decode.dict`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reattach::protocol::fuzz_decode(bytes));
