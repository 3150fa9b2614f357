//! Commands inside the guest, by the host's `ssh` with a key made for one machine.
//!
//! The image is not changed for it: the key reaches the guest as a systemd credential (systemd.system-credentials(7),
//! `tmpfiles.extra`) in SMBIOS, which only who owns the virtual machine can write.

use crate::vm::Vm;
use anyhow::{Context, Result, bail};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

const KEY: &str = "ssh_key";
/// First contact is trusted and remembered, so a device that loses its host keys is noticed.
const KNOWN_HOSTS: &str = "known_hosts";
/// Emulated key exchange takes seconds.
const CONNECT_S: u32 = 30;
/// From a settled system to the first login.
const PATIENCE: Duration = Duration::from_secs(120);
/// ssh's own failures, not the command's.
const SSH_FAILED: i32 = 255;

/// What a command in the guest did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Exit status.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

/// A loopback port that nothing listens on at this moment.
///
/// # Errors
/// If the host gives none.
pub fn free_port() -> Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("look for a free loopback port")?;
    Ok(listener.local_addr()?.port())
}

/// Whether a loopback port can be bound at this moment.
pub fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
}

/// The credential that lets the owner of a public key log in as root.
pub fn credential(public_key: &str) -> (String, String) {
    let line = public_key.trim().replace('%', "%%");
    // sshd takes the first value that it reads: the image's own file, which may forbid root, comes later.
    let rules = format!(
        "d /etc/ssh/authorized_keys.d 0755 root root -\n\
         f+ /etc/ssh/authorized_keys.d/root 0644 root root - {line}\n\
         d /etc/ssh/sshd_config.d 0755 root root -\n\
         f+ /etc/ssh/sshd_config.d/00-lab.conf 0644 root root - PermitRootLogin prohibit-password\n"
    );
    ("tmpfiles.extra".to_owned(), rules)
}

impl Vm {
    /// Makes a key for this machine and hands its public half to the guest; before the first start.
    ///
    /// # Errors
    /// If the host has no `ssh-keygen`, or the folder cannot be written.
    pub fn make_key(&self) -> Result<()> {
        let path = self.folder().join(KEY);
        let output = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-C", "farhold-lab", "-f"])
            .arg(&path)
            .output()
            .context("start ssh-keygen: install `openssh-client`")?;
        if !output.status.success() {
            bail!("make a key for the lab: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let public = path.with_extension("pub");
        let text = std::fs::read_to_string(&public).with_context(|| format!("read {}", public.display()))?;
        self.change(|machine| machine.credentials.push(credential(&text)))
    }

    /// The `ssh` command for this machine; a command for the guest may be added.
    ///
    /// # Errors
    /// If the machine has no network.
    pub fn ssh_command(&self) -> Result<Command> {
        let machine = self.machine()?;
        let port = machine.ssh_port.with_context(|| format!("{} has no network", machine.name))?;
        let folder = self.folder().canonicalize().context("open the machine's folder")?;
        let option = |name: &str, path: &Path| format!("{name}={}", path.display());
        let mut command = Command::new("ssh");
        command.arg("-i").arg(folder.join(KEY)).arg("-p").arg(port.to_string());
        for setting in [
            option("UserKnownHostsFile", &folder.join(KNOWN_HOSTS)),
            "GlobalKnownHostsFile=/dev/null".to_owned(),
            "StrictHostKeyChecking=accept-new".to_owned(),
            "IdentitiesOnly=yes".to_owned(),
            "BatchMode=yes".to_owned(),
            "LogLevel=ERROR".to_owned(),
            format!("ConnectTimeout={CONNECT_S}"),
        ] {
            command.arg("-o").arg(setting);
        }
        command.args(["-F", "/dev/null", "root@127.0.0.1"]);
        Ok(command)
    }

    /// Runs a shell command in the guest; waits for the guest's SSH if it is not up yet.
    ///
    /// # Errors
    /// If SSH does not come up, or refuses.
    pub fn run(&self, script: &str) -> Result<Outcome> {
        let mut said = String::new();
        let waited = self.wait("SSH in the guest", PATIENCE, || {
            let outcome = self.ssh_once(script)?;
            said.clone_from(&outcome.stderr);
            let refused = outcome.stderr.contains("HOST IDENTIFICATION HAS CHANGED")
                || outcome.stderr.contains("Permission denied");
            if outcome.code == SSH_FAILED && refused {
                bail!("ssh: {}", outcome.stderr.trim());
            }
            Ok((outcome.code != SSH_FAILED).then_some(outcome))
        });
        waited.with_context(|| format!("run `{script}` in the guest; ssh said: {}", said.trim()))
    }

    fn ssh_once(&self, script: &str) -> Result<Outcome> {
        let output = self
            .ssh_command()?
            .arg(script)
            .stdin(Stdio::null())
            .output()
            .context("start ssh: install `openssh-client`")?;
        Ok(Outcome {
            code: output.status.code().unwrap_or(SSH_FAILED),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs a shell command that must succeed, and gives what it printed, without the last newline.
    ///
    /// # Errors
    /// If it fails; the message has all that it said.
    pub fn sh(&self, script: &str) -> Result<String> {
        let outcome = self.run(script)?;
        if outcome.code != 0 {
            let said = format!("{}{}", outcome.stdout, outcome.stderr);
            bail!("`{script}` in the guest ended with {}: {}", outcome.code, said.trim());
        }
        Ok(outcome.stdout.trim_end_matches('\n').to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_free_port_can_be_bound() {
        let port = free_port().unwrap();
        TcpListener::bind(("127.0.0.1", port)).unwrap();
    }

    #[test]
    fn the_credential_is_lines_of_tmpfiles() {
        let (name, rules) = credential("ssh-ed25519 AAAA 100%me\n");
        assert_eq!(name, "tmpfiles.extra");
        assert!(rules.contains("/root 0644 root root - ssh-ed25519 AAAA 100%%me\n"), "{rules}");
        assert!(
            rules.lines().all(|rule| rule.starts_with("d /etc/ssh/") || rule.starts_with("f+ /etc/ssh/"))
        );
    }
}
