//! Floods, stalled clients, long lines, full disks.
