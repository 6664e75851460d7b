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
        let guard = self.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { guard, held: Held::new() }
    }
}

/// A lock that is held.
#[derive(Debug)]
pub struct MutexGuard<'a, T> {
    guard: imp::MutexGuard<'a, T>,
    held: Held,
}

impl<T> std::ops::Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.guard
    }
}

impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.guard
    }
}

/// Locks that this thread holds (I16), for assertions; builds without those, and models, do not
/// count and say 0.
#[must_use]
pub fn locks_held() -> usize {
    held::count()
}

/// Counts one lock of this thread for as long as it lives.
#[derive(Debug)]
struct Held;

impl Held {
    fn new() -> Self {
        held::change(1);
        Self
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        held::change(-1);
    }
}

#[cfg(all(debug_assertions, not(any(loom, shuttle))))]
mod held {
    use std::cell::Cell;

    thread_local! {
        static HELD: Cell<usize> = const { Cell::new(0) };
    }

    pub(super) fn change(by: isize) {
        HELD.set(HELD.get().wrapping_add_signed(by));
    }

    pub(super) fn count() -> usize {
        HELD.get()
    }
}

#[cfg(not(all(debug_assertions, not(any(loom, shuttle)))))]
mod held {
    pub(super) const fn change(_: isize) {}

    pub(super) const fn count() -> usize {
        0
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
        let MutexGuard { guard, held } = guard;
        let guard = self.0.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
        MutexGuard { guard, held }
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
            let MutexGuard { guard, held } = guard;
            let waited = self.0.wait_timeout(guard, timeout);
            let (guard, _) = waited.unwrap_or_else(|poisoned| poisoned.into_inner());
            MutexGuard { guard, held }
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
