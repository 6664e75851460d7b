//! A bell that can be waited for: a counter with the same steps as a wake fd.
//!
//! Must not know who is woken or why.

use crate::run::wake::Bell;
use crate::sync::{Arc, Condvar, Mutex, locks_held};

/// A bell and the ear for it. Clones are the same bell.
#[derive(Clone, Debug, Default)]
pub struct Alarm(Arc<(Mutex<usize>, Condvar)>);

impl Alarm {
    /// A silent one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Waits for a ring, then drains the bell.
    ///
    /// A model that never rings again is stuck here, and loom and shuttle say so: that is how a
    /// lost wake-up shows (I4c).
    pub fn wait(&self) {
        let mut rings = self.0.0.lock();
        while *rings == 0 {
            rings = self.0.1.wait(rings);
        }
        *rings = 0;
    }

    /// Drains the bell; says whether it had rung.
    #[must_use]
    pub fn drain(&self) -> bool {
        std::mem::take(&mut *self.0.0.lock()) > 0
    }
}

impl Bell for Alarm {
    fn ring(&self) {
        assert_eq!(locks_held(), 0, "I16: a bell is rung under a lock");
        *self.0.0.lock() += 1;
        self.0.1.notify_all();
    }
}
