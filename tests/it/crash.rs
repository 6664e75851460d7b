//! kill -9 of the gateway, and what is left.
