//! The 46 recorded scenarios of the original gateway.
