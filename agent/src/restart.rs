//! Restarts of the machine that an update asks for. On a node of a pair another process of this program first does what
//! `ha step-down` does, however long that takes; the loop goes on meanwhile, and can call the restart off.

use crate::io::tool::Tool;
use crate::pair::CONFIG;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two looks at the process, and at whether the restart is still wanted.
const LOOK: Duration = Duration::from_millis(500);
/// For a thread that only waits.
const STACK: usize = 128 << 10;

/// The restart that was asked for.
#[derive(Default)]
pub struct Restart {
    wanted: Option<Arc<AtomicBool>>,
}

impl Restart {
    /// Restarts the machine; `failed` says that the running release is left, which is put off for nobody.
    pub fn ask(&mut self, why: &str, failed: bool) {
        self.call_off();
        if !Path::new(CONFIG).exists() {
            return restart(why);
        }
        let wanted = Arc::new(AtomicBool::new(true));
        let (why, asked) = (why.to_owned(), Arc::clone(&wanted));
        let thread = std::thread::Builder::new().name("restart".to_owned()).stack_size(STACK);
        let begun = thread.spawn(move || {
            if let Err(error) = step_down(failed, &asked) {
                tracing::warn!(error = format!("{error:#}"), "the pair is not told of the restart");
            }
            if asked.load(Ordering::Relaxed) {
                restart(&why);
            } else if let Err(error) = stay() {
                tracing::warn!(
                    error = format!("{error:#}"),
                    "the restart was called off; the node stays closed"
                );
            }
        });
        match begun {
            Ok(_) => self.wanted = Some(wanted),
            Err(error) => tracing::error!(%error, "no thread for the restart; restart the machine by hand"),
        }
    }

    /// A restart that waits is wanted no longer.
    pub fn call_off(&mut self) {
        if let Some(wanted) = self.wanted.take() {
            wanted.store(false, Ordering::Relaxed);
        }
    }
}

fn own(args: &[&str]) -> Result<std::process::Child> {
    let program = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::null());
    command.spawn().with_context(|| format!("start {} {}", program.display(), args.join(" ")))
}

fn step_down(failed: bool, wanted: &AtomicBool) -> Result<()> {
    let args: &[&str] = if failed { &["ha", "step-down", "--failed"] } else { &["ha", "step-down"] };
    let mut process = own(args)?;
    loop {
        if let Some(status) = process.try_wait().context("wait for `ha step-down`")? {
            anyhow::ensure!(status.success(), "`ha step-down` ended with {status}");
            return Ok(());
        }
        if !wanted.load(Ordering::Relaxed) {
            process.kill().context("end `ha step-down`")?;
            return process.wait().map(drop).context("end `ha step-down`");
        }
        std::thread::sleep(LOOK);
    }
}

/// Takes back what stepping down did.
fn stay() -> Result<()> {
    for args in [["k3s", "undrain"], ["ha", "stay"]] {
        let status = own(&args)?.wait().context("wait for the agent's own command")?;
        anyhow::ensure!(status.success(), "`{}` ended with {status}", args.join(" "));
    }
    Ok(())
}

/// Asks systemd, which ends services in order; the update thread goes on until then, and any state is survived.
fn restart(why: &str) {
    tracing::warn!(why, "restarting the machine");
    if let Err(error) = Tool::Systemctl.run(&["--no-block", "reboot"]).and_then(|outcome| outcome.success()) {
        tracing::error!(error = format!("{error:#}"), "the machine does not restart; restart it by hand");
    }
}
