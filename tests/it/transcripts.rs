//! Recorded transcripts of real agents, folded.
