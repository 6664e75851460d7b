//! What may come over a keeper's connections: commands, replies, records (I11).
//!
//! `-dict=fuzz/socket.dict` helps with what a launch holds.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reattach::oracle::check_frames(bytes));
