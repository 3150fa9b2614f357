//! A site on the desk: machines in one folder that outlive the command that started them.
//!
//! `FOLDER/site.json` names the nodes, `FOLDER/<node>/` is a machine each. Ending a site removes the folder, and only
//! a folder that has a `site.json`.

use crate::boot::{self, Sign, Stage};
use crate::machine::{Lan, Machine};
use crate::ssh::{free_port, is_free};
use crate::status::settled;
use crate::vm::{self, Lifetime, Vm};
use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use formats::status::Status;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::Duration;

const DESCRIPTION: &str = "site.json";
/// Most nodes of a site.
pub const NODES_MAX: u8 = 9;

/// What a site is made of.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Disk image.
    pub image: PathBuf,
    /// Processor.
    pub arch: Arch,
    /// Number of nodes, up to [`NODES_MAX`].
    pub nodes: u8,
    /// Memory of each node, MiB.
    pub memory_mib: u32,
    /// Size of each disk, bytes; the image's size if `None`.
    pub disk_bytes: Option<u64>,
}

/// A site.
#[derive(Clone, Debug)]
pub struct Site {
    folder: PathBuf,
    nodes: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Description {
    nodes: Vec<String>,
}

/// Where sites are if nothing else is said: the folder for a user's state, because disks are kept there.
///
/// # Errors
/// If neither `XDG_STATE_HOME` nor `HOME` is set.
pub fn default_folder() -> Result<PathBuf> {
    let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".local/state")));
    Ok(state.context("find a folder for the lab: HOME is not set; give --dir")?.join("farhold/lab"))
}

impl Site {
    /// Makes a site's machines; none is started yet.
    ///
    /// # Errors
    /// If there is a site in the folder already, or a machine cannot be made; what was made is removed.
    pub fn create(folder: &Path, wanted: &Wanted) -> Result<Self> {
        if folder.join(DESCRIPTION).exists() {
            bail!("{} has a site already; end it with `farhold lab down`", folder.display());
        }
        if wanted.nodes == 0 || wanted.nodes > NODES_MAX {
            bail!("a site has 1 to {NODES_MAX} nodes, not {}", wanted.nodes);
        }
        let existed = folder.exists();
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        if existed && std::fs::read_dir(folder)?.next().is_some() {
            bail!("{} is not empty and has no site; give another --dir", folder.display());
        }
        let nodes: Vec<String> = (1..=wanted.nodes).map(|number| format!("node{number}")).collect();
        let site = Self { folder: folder.to_owned(), nodes };
        site.fill(wanted).inspect_err(|_| drop(std::fs::remove_dir_all(folder)))?;
        Ok(site)
    }

    fn fill(&self, wanted: &Wanted) -> Result<()> {
        vm::save(&self.folder.join(DESCRIPTION), &Description { nodes: self.nodes.clone() })?;
        let lan = if self.nodes.len() > 1 { Some(free_port()?) } else { None };
        for (name, node) in self.nodes.iter().zip(1..) {
            let mut machine = Machine::new(name, wanted.arch);
            machine.memory_mib = wanted.memory_mib;
            machine.ssh_port = Some(free_port()?);
            let peer = (self.nodes.len() == 2).then_some(3 - node.min(2));
            machine.lan = lan.map(|port| Lan { port, node, peer });
            let vm =
                Vm::create(&self.folder.join(name), &machine, &[wanted.image.as_path()], wanted.disk_bytes)?;
            vm.make_key()?;
        }
        Ok(())
    }

    /// The site in a folder.
    ///
    /// # Errors
    /// If there is none.
    pub fn open(folder: &Path) -> Result<Self> {
        let description: Option<Description> = vm::load(&folder.join(DESCRIPTION))?;
        let Some(Description { nodes }) = description else {
            bail!("no site in {}; start one with `farhold lab up PROFILE-OR-IMAGE`", folder.display());
        };
        Ok(Self { folder: folder.to_owned(), nodes })
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> &[String] {
        &self.nodes
    }

    /// A node's machine: the named one, or the first.
    ///
    /// # Errors
    /// If there is no such node.
    pub fn vm(&self, node: Option<&str>) -> Result<Vm> {
        let first = self.nodes.first().map(String::as_str);
        let name = node.or(first).context("the site has no nodes")?;
        if !self.nodes.iter().any(|known| known == name) {
            bail!("no node `{name}` in this site; there are: {}", self.nodes.join(", "));
        }
        Vm::open(&self.folder.join(name))
    }

    /// Powers on a node, or every node that is off. A loopback port that somebody took meanwhile is replaced.
    ///
    /// # Errors
    /// If one does not start; those before it go on running.
    pub fn start(&self, node: Option<&str>) -> Result<()> {
        let nodes = node.map_or_else(|| self.nodes.clone(), |node| vec![node.to_owned()]);
        for node in nodes {
            let vm = self.vm(Some(&node))?;
            if vm.process()?.is_some() {
                continue;
            }
            if vm.machine()?.ssh_port.is_some_and(|port| !is_free(port)) {
                let port = free_port()?;
                vm.change(|machine| machine.ssh_port = Some(port))?;
            }
            vm.start(Lifetime::Detached)?;
        }
        Ok(())
    }

    /// The site's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Ends every machine and removes the site with its disks.
    ///
    /// # Errors
    /// If a machine cannot be ended or the folder not removed.
    pub fn down(&self) -> Result<()> {
        for node in &self.nodes {
            let folder = self.folder.join(node);
            if folder.exists() {
                // A site that was only half made has folders without a machine.
                if let Ok(vm) = Vm::open(&folder) {
                    vm.cut()?;
                }
                std::fs::remove_dir_all(&folder).with_context(|| format!("remove {}", folder.display()))?;
            }
        }
        crate::pair::end_witness(&self.folder)?;
        for node in 1..=2 {
            // Ends of the cable, if there was one.
            drop(std::fs::remove_file(self.folder.join(format!("lan{node}.sock"))));
        }
        std::fs::remove_file(self.folder.join(DESCRIPTION)).context("remove the site's description")?;
        // The folder itself may be the user's; it goes only if nothing else is in it.
        match std::fs::remove_dir(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::DirectoryNotEmpty => {
                Err(error).with_context(|| format!("remove {}", self.folder.display()))
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

impl Vm {
    /// Follows a boot until the agent answers and the system has settled; `tell` hears of each stage once, with the
    /// time since power-on. Gives the status and the time of the first settled answer.
    ///
    /// # Errors
    /// If the boot ends without a system, QEMU ends, or `patience` runs out.
    pub fn follow_boot(
        &self,
        patience: Duration,
        mut tell: impl FnMut(Stage, Duration),
    ) -> Result<(Status, Duration)> {
        let patterns = boot::patterns();
        let mut console = self.console()?;
        let mut reached = None;
        self.wait("the agent", patience, || {
            let since = self.up_time()?.unwrap_or_default();
            while let Some((index, line)) = console.find(&patterns)? {
                match boot::sign(index) {
                    Sign::Stage(stage) if Some(stage) > reached => {
                        reached = Some(stage);
                        tell(stage, since);
                    }
                    Sign::Stage(_) => {}
                    Sign::End => bail!("the machine does not boot: {line}"),
                }
            }
            // Before the kernel there is nobody to answer, and a question that waits holds up the console.
            if reached < Some(Stage::Kernel) {
                return Ok(None);
            }
            let Some(status) = self.ask_status()?.filter(settled) else { return Ok(None) };
            let since = self.up_time()?.unwrap_or_default();
            tell(Stage::Agent, since);
            Ok(Some((status, since)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_a_site_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let error = Site::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains("farhold lab up"), "{error}");
    }

    #[test]
    fn a_folder_with_other_things_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("thesis.txt"), "x").unwrap();
        let wanted = Wanted {
            image: "disk.img".into(),
            arch: Arch::X86_64,
            nodes: 1,
            memory_mib: 512,
            disk_bytes: None,
        };
        let error = Site::create(folder.path(), &wanted).unwrap_err().to_string();
        assert!(error.contains("is not empty"), "{error}");
        assert!(folder.path().join("thesis.txt").exists());
    }

    #[test]
    fn unknown_nodes_are_named_with_the_known_ones() {
        let site = Site { folder: "/nonexistent".into(), nodes: vec!["node1".into(), "node2".into()] };
        let error = site.vm(Some("node3")).unwrap_err().to_string();
        assert_eq!(error, "no node `node3` in this site; there are: node1, node2");
    }
}
