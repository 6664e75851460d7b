//! What no recording shows.
