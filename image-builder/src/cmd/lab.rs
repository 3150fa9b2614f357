//! `farhold lab`: sites of virtual machines on the desk. What a machine is stands in `qemu-tests`; here are options and
//! words.

mod link;
mod push;
mod show;
mod up;

use anyhow::Result;
use clap::{Args, Subcommand};
use qemu_tests::machine::{LAN, UPLINK};
use qemu_tests::site::{self, Site};
use qemu_tests::vm::{BOOT_PATIENCE, Vm};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs sites of virtual machines on the desk.
#[derive(Args)]
pub struct LabCmd {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Starts a site from a profile or an image; it goes on when this command ends.
    Up(up::UpCmd),
    /// Shows what every node reports.
    Status(StatusCmd),
    /// Attaches the terminal to a node's serial console; Ctrl-] leaves.
    Console(NodeCmd),
    /// Opens a shell on a node, or runs a command there.
    Ssh(SshCmd),
    /// Cuts a node's power.
    Cut(NodeCmd),
    /// Pulls or plugs a node's network.
    Fault(FaultCmd),
    /// Powers on a node, or all that are off.
    Start(StartCmd),
    /// Makes the nodes' network a bad link, or joins two other ends by one: slow, late, lossy, down most of the time.
    Link(Box<link::LinkCmd>),
    /// Lets the nodes take a release from this machine, and shows how it goes.
    Push(push::PushCmd),
    /// Ends the site and removes its disks.
    Down(SiteArgs),
}

/// Which site.
#[derive(Args, Clone)]
pub struct SiteArgs {
    /// Folder of the site [default: farhold/lab in the folder for a user's state].
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Args)]
struct StatusCmd {
    #[command(flatten)]
    site: SiteArgs,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct NodeCmd {
    #[command(flatten)]
    site: SiteArgs,
    /// Node [default: the first].
    node: Option<String>,
}

#[derive(Args)]
struct FaultCmd {
    #[command(flatten)]
    site: SiteArgs,
    /// Node.
    node: String,
    /// What happens.
    fault: Fault,
    /// Which network.
    #[arg(long, value_enum, default_value = "lan")]
    network: Network,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Fault {
    /// The network's plug is pulled.
    Pull,
    /// It is put back.
    Plug,
    /// The power is cut.
    Cut,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Network {
    /// Between the nodes of the site.
    Lan,
    /// To this machine: SSH, and the witness.
    Uplink,
    /// Both.
    All,
}

#[derive(Args)]
struct SshCmd {
    #[command(flatten)]
    site: SiteArgs,
    /// Node [default: the first].
    node: Option<String>,
    /// Command to run there, after `--`.
    #[arg(last = true)]
    command: Vec<String>,
}

#[derive(Args)]
struct StartCmd {
    #[command(flatten)]
    node: NodeCmd,
    /// Wait until the system has settled.
    #[arg(long)]
    wait: bool,
}

impl SiteArgs {
    fn folder(&self) -> Result<PathBuf> {
        self.dir.clone().map_or_else(site::default_folder, Ok)
    }
    fn open(&self) -> Result<Site> {
        Site::open(&self.folder()?)
    }
}

impl NodeCmd {
    fn vm(&self) -> Result<Vm> {
        self.site.open()?.vm(self.node.as_deref())
    }
}

impl LabCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If there is no site, or QEMU or the guest does not do what was asked.
    pub fn run(&self) -> Result<ExitCode> {
        match &self.action {
            Action::Up(up) => up.run(),
            Action::Status(status) => show::status(&status.site.open()?, status.json),
            Action::Console(node) => console(node),
            Action::Ssh(ssh) => ssh.run(),
            Action::Cut(node) => {
                node.vm()?.cut()?;
                Ok(ExitCode::SUCCESS)
            }
            Action::Fault(fault) => fault.run(),
            Action::Start(start) => start.run(),
            Action::Link(link) => link.run(),
            Action::Push(push) => push.run(),
            Action::Down(site) => {
                site.open()?.down()?;
                Ok(ExitCode::SUCCESS)
            }
        }
    }
}

fn console(node: &NodeCmd) -> Result<ExitCode> {
    let vm = node.vm()?;
    eprintln!("console of {}; Ctrl-] leaves", vm.machine()?.name);
    match qemu_tests::attach::attach(&vm)? {
        qemu_tests::attach::End::Left | qemu_tests::attach::End::Input => {}
        qemu_tests::attach::End::Machine => eprintln!("the machine was switched off"),
    }
    Ok(ExitCode::SUCCESS)
}

impl FaultCmd {
    fn run(&self) -> Result<ExitCode> {
        let vm = self.site.open()?.vm(Some(&self.node))?;
        let up = match self.fault {
            Fault::Cut => return vm.cut().map(|()| ExitCode::SUCCESS),
            Fault::Pull => false,
            Fault::Plug => true,
        };
        let networks: &[&str] = match self.network {
            Network::Lan => &[LAN],
            Network::Uplink => &[UPLINK],
            Network::All => &[LAN, UPLINK],
        };
        networks.iter().try_for_each(|network| vm.link(network, up))?;
        Ok(ExitCode::SUCCESS)
    }
}

impl SshCmd {
    fn run(&self) -> Result<ExitCode> {
        let vm = self.site.open()?.vm(self.node.as_deref())?;
        if vm.process()?.is_none() {
            anyhow::bail!("{} is off; `farhold lab start` powers it on", vm.machine()?.name);
        }
        let mut command = vm.ssh_command()?;
        // Only returns if it fails; otherwise ssh takes this process's place, with its terminal and exit status.
        let error = command.args(&self.command).exec();
        Err(anyhow::Error::new(error).context("start ssh: install `openssh-client`"))
    }
}

impl StartCmd {
    fn run(&self) -> Result<ExitCode> {
        let site = self.node.site.open()?;
        site.start(self.node.node.as_deref())?;
        if self.wait {
            let nodes = self.node.node.clone().map_or_else(|| site.nodes().to_vec(), |node| vec![node]);
            show::follow(&site, &nodes, BOOT_PATIENCE)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}
