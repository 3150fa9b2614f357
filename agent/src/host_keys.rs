//! `farhold-agent host-keys`: makes the SSH host key of this device once, keeps it in the state store, and puts it into
//! `/etc/ssh`. Started by a unit ordered before the SSH server.

use crate::early::{ETC_STORE, put_in_store};
use crate::io::durable;
use crate::io::tool::Tool;
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Ed25519 only: every client of the last ten years takes it, and one key is one less to lose.
const NAME: &str = "ssh_host_ed25519_key";
/// Where keys are made before they are moved; in memory.
const WORK: &str = "/run/farhold/host-keys";

/// Makes what is missing.
///
/// # Errors
/// If a key can be neither found nor made, or `/etc/ssh` cannot be written.
pub fn run() -> Result<()> {
    let in_etc = Path::new("/etc/ssh").join(NAME);
    // The early stage has put a kept key there already.
    if in_etc.exists() {
        tracing::info!(key = %in_etc.display(), "host key is there");
        return Ok(());
    }
    let (key, public) = make(Path::new(WORK))?;
    // The public half first: the early stage takes the pair, and a private key alone is a whole key for sshd.
    let kept = put_in_store(Path::new(ETC_STORE), &format!("ssh/{NAME}.pub"), &public, 0o644)
        .and_then(|()| put_in_store(Path::new(ETC_STORE), &format!("ssh/{NAME}"), &key, 0o600));
    if let Err(error) = kept {
        tracing::warn!(
            error = format!("{error:#}"),
            "the host key of this boot is not kept; the next boot has another"
        );
    }
    durable::write(&in_etc.with_extension("pub"), &public, 0o644)?;
    durable::write(&in_etc, &key, 0o600)?;
    tracing::info!(key = %in_etc.display(), "host key made");
    Ok(())
}

fn make(work: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
    if work.exists() {
        fs::remove_dir_all(work).with_context(|| format!("clear {}", work.display()))?;
    }
    durable::make_folder(work, 0o700)?;
    let path = work.join(NAME);
    let text = path.to_str().context("the work folder's name is not text")?;
    Tool::SshKeygen.run(&["-q", "-t", "ed25519", "-N", "", "-C", "", "-f", text])?.success()?;
    let read = |path: &Path| fs::read(path).with_context(|| format!("read {}", path.display()));
    let pair = (read(&path)?, read(&path.with_extension("pub"))?);
    fs::remove_dir_all(work).with_context(|| format!("clear {}", work.display()))?;
    Ok(pair)
}
