//! Operations from bytes, applied to the registry that ships and to its reference (I1 to I20 as
//! far as one thread can break them).
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reattach::oracle::check_bytes(bytes));
