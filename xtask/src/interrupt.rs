//! Ctrl-C, and a request to terminate, as a flag.

use anyhow::Result;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Set by Ctrl-C or a request to terminate.
#[derive(Debug, Clone)]
pub(crate) struct Interrupt(Arc<AtomicBool>);

impl Interrupt {
    /// Listens from now on.
    pub(crate) fn listen() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// Whether it came.
    pub(crate) fn came(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// One that does not listen.
    #[cfg(test)]
    pub(crate) fn quiet() -> Self {
        Self(Arc::new(AtomicBool::new(false)))
    }

    /// As if it came.
    #[cfg(test)]
    pub(crate) fn pretend(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
