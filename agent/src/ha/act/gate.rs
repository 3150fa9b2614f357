//! What cuts streams at once: a gate is passed, and cutting it ends every stream that had passed.
//!
//! It does not know what flows. One thread: a cut is complete when it returns, because each stream asks before each write.

use std::cell::Cell;
use std::rc::Rc;
use tokio::sync::Notify;

/// A gate that can be cut again and again.
#[derive(Default)]
pub struct Gate {
    generation: Cell<u64>,
    changed: Notify,
}

/// One stream's passage; it holds until the next cut.
pub struct Pass {
    gate: Rc<Gate>,
    generation: u64,
}

/// Whether a byte may be written now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may.
    Go,
    /// Not yet.
    Wait,
    /// Never again.
    Stop,
}

impl Gate {
    /// Ends everything that has passed so far.
    pub fn cut(&self) {
        self.generation.set(self.generation.get() + 1);
        self.changed.notify_waiters();
    }

    /// Lets everybody ask again.
    pub fn wake(&self) {
        self.changed.notify_waiters();
    }

    /// Passes.
    pub fn pass(self: &Rc<Self>) -> Pass {
        Pass { gate: Rc::clone(self), generation: self.generation.get() }
    }
}

impl Pass {
    /// Whether it has not been cut.
    pub fn holds(&self) -> bool {
        self.generation == self.gate.generation.get()
    }

    /// Waits for a cut or a wake.
    pub async fn changed(&self) {
        self.gate.changed.notified().await;
    }

    /// Waits for the cut.
    pub async fn cut(&self) {
        loop {
            let changed = self.gate.changed.notified();
            if !self.holds() {
                return;
            }
            changed.await;
        }
    }
}
