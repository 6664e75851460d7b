//! Request heads: any bytes give a head, a refusal, or a wait for more, however they arrive (I11).
//!
//! `cargo +nightly fuzz run head fuzz/corpus/head fuzz/seeds/head -- -dict=fuzz/head.dict`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reattach::server::http::head::fuzz_head(bytes));
