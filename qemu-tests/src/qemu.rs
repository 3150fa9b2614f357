//! Which QEMU and which firmware to use: what `FARHOLD_QEMU` names, else the builder's pinned tools, else the host's.
//!
//! Knows nothing of machines. Refuses QEMU before 8: the emulation (TCG) of 7.2 was seen to corrupt x86 guests within
//! seconds of their start, five runs of seven, with the same disk that 10.0 booted in all of nineteen.

use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Oldest major version of QEMU whose emulation is trusted.
const OLDEST: u32 = 8;
/// Variable with a QEMU command, blanks between its words.
const VARIABLE: &str = "FARHOLD_QEMU";
/// Variable with a folder that has `OVMF/` and `AAVMF/`, used with [`VARIABLE`] and the host's QEMU.
const FIRMWARE_VARIABLE: &str = "FARHOLD_FIRMWARE";
/// Where Debian and Ubuntu put firmware.
const HOST_FIRMWARE: &str = "/usr/share";
/// Variable with the path of the `farhold` program.
pub const FARHOLD_VARIABLE: &str = "FARHOLD";

/// QEMU and firmware for one architecture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Qemu {
    /// Program and the arguments that come before any other.
    pub command: Vec<String>,
    /// Environment that it needs.
    pub environment: BTreeMap<String, String>,
    /// Firmware files.
    pub firmware: Firmware,
    /// Version, as `10.0.13`.
    pub version: String,
}

/// Firmware files of one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Firmware {
    /// Program, for machines without Secure Boot.
    pub code: PathBuf,
    /// Program that enforces Secure Boot.
    pub secure_code: PathBuf,
    /// Empty variable store, copied per machine.
    pub vars: PathBuf,
}

/// What `farhold tools lab --json` prints.
#[derive(Debug, Deserialize)]
struct Tools {
    qemu_x86_64: Vec<String>,
    qemu_aarch64: Vec<String>,
    #[serde(default)]
    environment: BTreeMap<String, String>,
    firmware: BTreeMap<Arch, Firmware>,
}

impl Qemu {
    /// Finds QEMU and firmware for `arch`.
    ///
    /// # Errors
    /// If there is none that can be used; the message says what was looked at and what to do.
    pub fn find(arch: Arch) -> Result<Self> {
        if let Ok(words) = std::env::var(VARIABLE) {
            let command: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            let found = Self::host(arch, command).with_context(|| format!("{VARIABLE}={words}"))?;
            return found.with_context(|| format!("{VARIABLE}={words}: no such program"));
        }
        let from_tools = match farhold() {
            Some(farhold) => Self::tools(arch, &farhold).context("find QEMU among the builder's tools"),
            None => Err(anyhow::anyhow!(
                "the `farhold` program was not found; set {FARHOLD_VARIABLE} to its path"
            )),
        };
        let error = match from_tools {
            Ok(qemu) => return Ok(qemu),
            Err(error) => error,
        };
        match Self::host(arch, vec![program(arch).to_owned()]) {
            Ok(Some(qemu)) => Ok(qemu),
            Ok(None) => Err(error.context(format!(
                "no QEMU: neither the builder's tools nor the host have `{}`; with network `farhold tools lab` \
                 fetches it, or set {VARIABLE}",
                program(arch)
            ))),
            Err(host) => Err(host.context(format!("the builder's tools cannot be used either ({error:#})"))),
        }
    }

    fn tools(arch: Arch, farhold: &Path) -> Result<Self> {
        let mut command = Command::new(farhold);
        command.args(["tools", "lab", "--json"]);
        // The first time QEMU is downloaded: whoever waits at a terminal sees how far it is.
        if std::io::stderr().is_terminal() {
            command.stderr(Stdio::inherit());
        }
        let output = command.output().with_context(|| format!("start {}", farhold.display()))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("`farhold tools lab --json` failed ({}): {}", output.status, said.trim());
        }
        let tools: Tools =
            serde_json::from_slice(&output.stdout).context("read what `farhold tools lab --json` printed")?;
        let command = match arch {
            Arch::X86_64 => tools.qemu_x86_64,
            Arch::Arm64 => tools.qemu_aarch64,
        };
        let firmware =
            tools.firmware.get(&arch).with_context(|| format!("tools have no firmware for {arch}"))?;
        Self::checked(command, tools.environment, firmware.clone())
    }

    /// `None` if the program does not exist.
    fn host(arch: Arch, mut command: Vec<String>) -> Result<Option<Self>> {
        let Some(program) = command.first_mut() else { bail!("the QEMU command is empty") };
        let Some(path) = in_path(program) else { return Ok(None) };
        *program = path.display().to_string();
        let folder = std::env::var(FIRMWARE_VARIABLE).unwrap_or_else(|_| HOST_FIRMWARE.to_owned());
        let firmware = Firmware::below(arch, Path::new(&folder));
        Self::checked(command, BTreeMap::new(), firmware).map(Some)
    }

    fn checked(
        command: Vec<String>,
        environment: BTreeMap<String, String>,
        firmware: Firmware,
    ) -> Result<Self> {
        for file in [&firmware.code, &firmware.secure_code, &firmware.vars] {
            if !file.is_file() {
                bail!(
                    "no firmware file {}: install Debian's `ovmf` and `qemu-efi-aarch64`, or set \
                     {FIRMWARE_VARIABLE} to the folder that has OVMF/ and AAVMF/",
                    file.display()
                );
            }
        }
        let mut qemu = Self { command, environment, firmware, version: String::new() };
        let output = qemu.to_command()?.arg("--version").output().context("start QEMU")?;
        let text = String::from_utf8_lossy(&output.stdout);
        let Some(version) = parse_version(&text) else {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("QEMU does not tell its version: `{}` {}", text.trim(), said.trim());
        };
        qemu.version = version.to_owned();
        let major = version.split('.').next().and_then(|m| m.parse::<u32>().ok()).unwrap_or(0);
        if major < OLDEST {
            bail!(
                "QEMU is {version}, but must be {OLDEST} or newer: emulation of 7.2 corrupts x86 guests; unset \
                 {VARIABLE} and let `farhold tools lab` fetch one, or install a newer QEMU (Debian 12: \
                 `apt-get install -t bookworm-backports qemu-system-x86 qemu-system-arm`)"
            );
        }
        Ok(qemu)
    }

    /// The command to add machine options to.
    ///
    /// # Errors
    /// If the command is empty.
    pub fn to_command(&self) -> Result<Command> {
        let (program, arguments) = self.command.split_first().context("the QEMU command is empty")?;
        let mut command = Command::new(program);
        command.args(arguments).envs(&self.environment);
        Ok(command)
    }
}

impl Firmware {
    /// Files as Debian's `ovmf` and `qemu-efi-aarch64` name them, below `folder`.
    fn below(arch: Arch, folder: &Path) -> Self {
        let (folder, code, secure, vars) = match arch {
            Arch::X86_64 => {
                (folder.join("OVMF"), "OVMF_CODE_4M.fd", "OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.fd")
            }
            Arch::Arm64 => {
                (folder.join("AAVMF"), "AAVMF_CODE.no-secboot.fd", "AAVMF_CODE.secboot.fd", "AAVMF_VARS.fd")
            }
        };
        Self { code: folder.join(code), secure_code: folder.join(secure), vars: folder.join(vars) }
    }
}

/// The `farhold` program: named by [`FARHOLD_VARIABLE`], this program itself, or built beside this test.
pub fn farhold() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os(FARHOLD_VARIABLE) {
        return Some(path.into());
    }
    let own = std::env::current_exe().ok()?;
    if own.file_name()? == "farhold" {
        return Some(own);
    }
    own.ancestors().skip(1).take(2).map(|folder| folder.join("farhold")).find(|path| path.is_file())
}

const fn program(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "qemu-system-x86_64",
        Arch::Arm64 => "qemu-system-aarch64",
    }
}

/// The absolute path of a program, looked up as a shell would; QEMU is started in another folder.
fn in_path(program: &str) -> Option<PathBuf> {
    if program.contains('/') {
        return std::fs::canonicalize(program).ok();
    }
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// `QEMU emulator version 10.0.13 (Debian …)`.
fn parse_version(text: &str) -> Option<&str> {
    let rest = text.split_once("version ")?.1;
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    Some(&rest[..end]).filter(|version| !version.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn versions_are_found() {
        assert_eq!(parse_version("QEMU emulator version 10.0.13 (Debian 1:10)\nCopyright"), Some("10.0.13"));
        assert_eq!(parse_version("QEMU emulator version 7.2.22"), Some("7.2.22"));
        assert_eq!(parse_version("no such thing"), None);
    }

    /// A program that says it is QEMU of that version, and firmware files beside it.
    fn pretended(version: &str) -> (tempfile::TempDir, Vec<String>, Firmware) {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("qemu");
        std::fs::write(&program, format!("#!/bin/sh\necho QEMU emulator version {version}\n")).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let firmware = Firmware::below(Arch::X86_64, folder.path());
        std::fs::create_dir(folder.path().join("OVMF")).unwrap();
        for file in [&firmware.code, &firmware.secure_code, &firmware.vars] {
            std::fs::write(file, "").unwrap();
        }
        (folder, vec![program.display().to_string()], firmware)
    }

    #[test]
    fn an_old_qemu_is_refused_with_a_way_out() {
        let (_folder, command, firmware) = pretended("7.2.22");
        let error = Qemu::checked(command, BTreeMap::new(), firmware).unwrap_err().to_string();
        assert!(error.starts_with("QEMU is 7.2.22, but must be 8 or newer"), "{error}");
        assert!(error.contains("bookworm-backports"), "{error}");
    }

    #[test]
    fn a_new_qemu_is_taken_and_missing_firmware_is_named() {
        let (folder, command, firmware) = pretended("10.0.13");
        let qemu = Qemu::checked(command.clone(), BTreeMap::new(), firmware.clone()).unwrap();
        assert_eq!(qemu.version, "10.0.13");
        std::fs::remove_file(&firmware.vars).unwrap();
        let error = Qemu::checked(command, BTreeMap::new(), firmware).unwrap_err().to_string();
        let missing = folder.path().join("OVMF/OVMF_VARS_4M.fd");
        assert!(error.contains(&missing.display().to_string()), "{error}");
    }
}
