//! Faults of the machine as a whole: power cut, pause, reset. Faults on the disk are in [`crate::disk`].

use crate::qmp::Qmp;
use crate::vm::Vm;
use anyhow::Result;
use nix::sys::signal::Signal;
use serde_json::json;
use std::time::Duration;

/// How long the kernel may take to end a killed process.
const KILL: Duration = Duration::from_secs(30);

impl Vm {
    /// Power cut: QEMU is killed. What the guest did not flush may still reach the disk image, because the host keeps
    /// what QEMU wrote; see [`crate::machine::Cache`] for what this proves and what it does not.
    ///
    /// # Errors
    /// If the process cannot be killed.
    pub fn cut(&self) -> Result<()> {
        if let Some(process) = self.process()? {
            process.signal(Signal::SIGKILL)?;
            process.wait_end(KILL)?;
        }
        Ok(())
    }

    /// Stops the guest's processors; its clocks stop too.
    ///
    /// # Errors
    /// If QEMU does not run.
    pub fn pause(&self) -> Result<()> {
        Qmp::connect(self.folder())?.execute("stop", json!({})).map(drop)
    }

    /// Lets a paused guest go on.
    ///
    /// # Errors
    /// If QEMU does not run.
    pub fn resume(&self) -> Result<()> {
        Qmp::connect(self.folder())?.execute("cont", json!({})).map(drop)
    }

    /// Pulls the plug of one of the machine's networks, or puts it back; the network cards see it.
    ///
    /// # Errors
    /// If QEMU does not run, or the machine has no such network.
    pub fn link(&self, network: &str, up: bool) -> Result<()> {
        Qmp::connect(self.folder())?.execute("set_link", json!({ "name": network, "up": up })).map(drop)
    }

    /// The reset button: no shutdown, memory lost, disk caches kept.
    ///
    /// # Errors
    /// If QEMU does not run.
    pub fn reset(&self) -> Result<()> {
        Qmp::connect(self.folder())?.execute("system_reset", json!({})).map(drop)
    }

    /// The power button: asks the guest to shut down, then waits for QEMU's end.
    ///
    /// # Errors
    /// If QEMU does not run, or the guest has not shut down after `patience`.
    pub fn power_button(&self, patience: Duration) -> Result<()> {
        Qmp::connect(self.folder())?.execute("system_powerdown", json!({}))?;
        if let Some(process) = self.process()? {
            process.wait_end(patience)?;
        }
        Ok(())
    }
}
