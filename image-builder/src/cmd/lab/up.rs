//! `farhold lab up`: makes a site from an image, or locks and builds a profile first.

use super::{SiteArgs, show};
use anyhow::{Context, Result, bail};
use clap::Args;
use formats::arch::Arch;
use qemu_tests::disk::DiskImage;
use qemu_tests::pair;
use qemu_tests::site::{Site, Wanted};
use qemu_tests::vm::BOOT_PATIENCE;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Programs that a build takes as artefacts and that are built beside this one.
const BESIDE: [&str; 2] = ["farhold-agent", "farhold-init"];
/// From two nodes that are up to a pair in sync, emulated.
const PAIR_PATIENCE: Duration = Duration::from_secs(400);

#[derive(Args)]
pub struct UpCmd {
    /// Profile (.yaml), disk image, or the folder that `farhold build --out` wrote.
    #[arg(value_name = "PROFILE-OR-IMAGE")]
    what: PathBuf,
    #[command(flatten)]
    site: SiteArgs,
    /// Processor to build a profile for [default: this machine's].
    #[arg(long)]
    arch: Option<Arch>,
    /// Board to build a profile for.
    #[arg(long, default_value = "vm")]
    board: String,
    /// Number of nodes.
    #[arg(long, default_value_t = 1)]
    nodes: u8,
    /// Memory of each node, MiB.
    #[arg(long, value_name = "MIB", default_value_t = 1024)]
    memory: u32,
    /// Size of each node's disk, as 8G or 900M.
    #[arg(long, value_name = "SIZE", default_value = "8G", value_parser = size)]
    disk_size: u64,
    /// Wait until the system has settled, and print what took how long; two nodes of an image for pairs are then made one.
    #[arg(long)]
    wait: bool,
    /// Value for a variable of the profile.
    #[arg(long, value_name = "NAME=VALUE")]
    set: Vec<String>,
    /// Artefact for a profile's build, as `farhold build` takes it.
    #[arg(long, value_name = "NAME=PATH")]
    artefact: Vec<String>,
    /// Keys for a profile's build [default: made for this lab].
    #[arg(long, value_name = "DIR")]
    keys: Option<PathBuf>,
}

impl UpCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If there is no image, the build fails, or a machine does not start or settle.
    pub fn run(&self) -> Result<ExitCode> {
        let folder = self.site.folder()?;
        let image = self.image(&folder)?;
        let arch = DiskImage::new(&image).arch()?;
        if let Some(asked) = self.arch.filter(|asked| *asked != arch) {
            bail!("{} is for {arch}, but --arch asks for {asked}", image.display());
        }
        let wanted = Wanted {
            image,
            arch,
            nodes: self.nodes,
            memory_mib: self.memory,
            disk_bytes: Some(self.disk_size),
        };
        let site = Site::create(&folder, &wanted)?;
        if let Err(error) = site.start(None) {
            site.down()?;
            return Err(error);
        }
        if self.wait {
            show::follow(&site, site.nodes(), BOOT_PATIENCE)?;
            self.pair(&site)?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Two nodes of an image for pairs become one.
    fn pair(&self, site: &Site) -> Result<()> {
        if self.nodes != 2 || !pair::is_possible(&site.vm(None)?)? {
            return Ok(());
        }
        let agent = std::env::current_exe().context("find this program")?.with_file_name("farhold-agent");
        if !agent.is_file() {
            bail!("{} is missing: the witness of the pair is that program", agent.display());
        }
        pair::enrol(site, &agent, PAIR_PATIENCE, |step| eprintln!("pair: {step}"))
    }

    fn image(&self, folder: &Path) -> Result<PathBuf> {
        let what = &self.what;
        let meta = what.metadata().with_context(|| format!("open {}", what.display()))?;
        let is_profile = what.extension().is_some_and(|end| end == "yaml" || end == "yml");
        if meta.is_dir() {
            let image = what.join("disk.img");
            if !image.is_file() {
                bail!("{} has no disk.img: it is not what `farhold build --out` wrote", what.display());
            }
            return Ok(image);
        }
        if is_profile { self.build(folder) } else { Ok(what.clone()) }
    }

    /// Locks and builds with this same program, so that `lab up` is exactly what the two commands do. The result
    /// stands beside the site's folder, where the next `up` finds it.
    fn build(&self, folder: &Path) -> Result<PathBuf> {
        let mut name = folder.as_os_str().to_owned();
        name.push(".build");
        let below = PathBuf::from(name);
        std::fs::create_dir_all(&below).with_context(|| format!("make {}", below.display()))?;
        let Some(arch) = self.arch.or_else(Arch::host) else {
            bail!("no images for this machine's processor; give --arch");
        };
        let keys = match &self.keys {
            Some(keys) => keys.clone(),
            None => {
                let keys = below.join("keys");
                if !keys.exists() {
                    farhold(|command| command.args(["keys", "new"]).arg(&keys))?;
                }
                keys
            }
        };
        let (lock, out) = (below.join("lock.json"), below.join("out"));
        farhold(|command| {
            let command = command.arg("lock").arg(&self.what).args(["--arch", arch.name()]);
            self.common(command.arg("--out").arg(&lock), arch)
        })?;
        farhold(|command| {
            let command = command.arg("build").arg(&self.what).args(["--arch", arch.name()]);
            let command = command.arg("--lock").arg(&lock).arg("--keys").arg(&keys);
            self.common(command.arg("--out").arg(&out), arch)
        })?;
        Ok(out.join("disk.img"))
    }

    /// Options that `lock` and `build` share.
    fn common<'a>(&self, command: &'a mut Command, arch: Arch) -> &'a mut Command {
        command.args(["--board", &self.board]);
        for set in &self.set {
            command.args(["--set", set]);
        }
        for artefact in &self.artefact {
            command.args(["--artefact", artefact]);
        }
        let given =
            |name: &str| self.artefact.iter().any(|a| a.split_once('=').is_some_and(|(n, _)| n == name));
        for name in BESIDE.into_iter().filter(|name| !given(name)) {
            if let Some(path) = beside(name, arch) {
                command.arg("--artefact").arg(format!("{name}={}", path.display()));
            }
        }
        command
    }
}

/// A program of the device: in the folder of its processor that `make programs-NAME` fills, or beside this program.
fn beside(name: &str, arch: Arch) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    let folder = own.parent()?;
    let places = [folder.parent()?.join(arch.name()).join(name), folder.join(name)];
    places.into_iter().find(|path| path.is_file())
}

/// Runs this program with other arguments, its words and progress shown.
fn farhold(arguments: impl FnOnce(&mut Command) -> &mut Command) -> Result<()> {
    let own = std::env::current_exe().context("find this program")?;
    let mut command = Command::new(own);
    let status = arguments(&mut command).status().context("start farhold")?;
    if !status.success() {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        bail!("`farhold {}` failed ({status}); nothing was started", words.join(" "));
    }
    Ok(())
}

/// Bytes from `900M`, `8G` or a plain number.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes() {
        [.., b'M'] => (&text[..text.len() - 1], 20),
        [.., b'G'] => (&text[..text.len() - 1], 30),
        [..] => (text, 0),
    };
    let number = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    number.filter(|bytes| *bytes > 0).ok_or_else(|| format!("`{text}` is no size; write it as 8G or 900M"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_bad_ones_refused() {
        assert_eq!(size("8G"), Ok(8 << 30));
        assert_eq!(size("900M"), Ok(900 << 20));
        assert_eq!(size("4096"), Ok(4096));
        for bad in ["", "G", "-1", "0", "8T", "99999999999999999G", "é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
