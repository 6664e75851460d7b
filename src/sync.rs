//! The switch between std, loom and shuttle primitives: the only file that names them.
//!
//! Everything that the core locks, waits on or counts with comes from here, so that the models
//! in `tests/models` explore the code that ships. `Arc` stays std's: reference counts are not what
//! is under test, and loom's would only add branch points. Must not know anything else.

#![allow(clippy::disallowed_types, reason = "this file is where the rest gets them from")]

pub use std::sync::Arc;

#[cfg(loom)]
use loom::sync as imp;
#[cfg(shuttle)]
use shuttle::sync as imp;
#[cfg(not(any(loom, shuttle)))]
use std::sync as imp;

pub use imp::MutexGuard;
pub use imp::atomic::{AtomicUsize, Ordering};

/// A mutex without poisoning: a panic under a lock ends its thread, and what the lock guards is
/// changed only by steps that each leave it whole.
#[derive(Debug, Default)]
pub struct Mutex<T>(imp::Mutex<T>);

impl<T> Mutex<T> {
    /// A mutex around `value`.
    pub fn new(value: T) -> Self {
        Self(imp::Mutex::new(value))
    }

    /// Waits for the lock.
    pub fn lock(&self) -> MutexGuard<'_, T> {
        self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// A condition to wait for, with a `Mutex` from here.
#[derive(Debug, Default)]
pub struct Condvar(imp::Condvar);

impl Condvar {
    /// A new one.
    #[must_use]
    pub fn new() -> Self {
        Self(imp::Condvar::new())
    }

    /// Lets go of the lock, waits to be notified, takes the lock again.
    pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
        self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// As `wait`, for at most `timeout`. Models have no time: there it waits without end, so
    /// nothing in the core may need the time-out to make progress.
    pub fn wait_for<'a, T>(
        &self,
        guard: MutexGuard<'a, T>,
        timeout: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        #[cfg(not(any(loom, shuttle)))]
        {
            self.0.wait_timeout(guard, timeout).unwrap_or_else(|poisoned| poisoned.into_inner()).0
        }
        #[cfg(any(loom, shuttle))]
        {
            let _ = timeout;
            self.wait(guard)
        }
    }

    /// Wakes all who wait.
    pub fn notify_all(&self) {
        self.0.notify_all();
    }
}
