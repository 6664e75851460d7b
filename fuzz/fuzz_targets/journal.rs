//! An agent's journal, built and damaged by a script: what ships reads what a naive reader does,
//! and never more than was written (I11).
//!
//! It works on files: `TMPDIR=/dev/shm` makes it several times faster.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| reattach::oracle::check_journal(bytes));
