//! Somebody who types at a machine's serial console, as firmware, boot loader and guest take it.

use crate::console::Console;
use crate::machine::SERIAL_SOCKET;
use crate::socket;
use crate::vm::{BOOT_PATIENCE, Vm};
use anyhow::{Context, Result};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// The arrow key, as a terminal sends it (ECMA-48).
const DOWN: &str = "\x1b[B";
/// QEMU takes what is typed as fast as the guest reads.
const PATIENCE: Duration = Duration::from_secs(60);
/// A key that is held comes again so often.
const REPEAT: Duration = Duration::from_millis(100);

/// A connection to the console. QEMU serves one at a time, until the machine is off.
#[derive(Debug)]
pub struct Keyboard {
    stream: UnixStream,
}

impl Keyboard {
    /// Types.
    ///
    /// # Errors
    /// If QEMU ended.
    pub fn keys(&mut self, keys: &str) -> Result<()> {
        self.stream.write_all(keys.as_bytes()).context("type at the console")
    }
}

impl Vm {
    /// Sits down at the running machine's console.
    ///
    /// # Errors
    /// If it does not run.
    pub fn keyboard(&self) -> Result<Keyboard> {
        let stream = socket::connect(self.folder(), SERIAL_SOCKET, PATIENCE).context("reach the console")?;
        // What the machine says is read from its log; left unread here, it would hold the machine up.
        let mut said = stream.try_clone().context("reach the console")?;
        said.set_read_timeout(None).context("reach the console")?;
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        Ok(Keyboard { stream })
    }

    /// Holds a key while the machine starts until the boot menu is there, and starts its last entry, which must be
    /// called `title`.
    ///
    /// # Errors
    /// As [`Vm::wait_console`].
    pub fn choose_last_entry(
        &self,
        (console, keyboard): (&mut Console, &mut Keyboard),
        title: &str,
    ) -> Result<()> {
        self.wait(&format!("`{title}` in the boot menu"), BOOT_PATIENCE, || {
            keyboard.keys(" ")?;
            std::thread::sleep(REPEAT);
            console.find(&[title])
        })?;
        // The choice stays at the end once it is there.
        for _ in 0..8 {
            keyboard.keys(DOWN)?;
            std::thread::sleep(REPEAT);
        }
        keyboard.keys("\r")
    }
}
