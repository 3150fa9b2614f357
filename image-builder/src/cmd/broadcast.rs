//! `farhold broadcast`: a repository on the air, round after round, for receivers that cannot answer.

use crate::progress::Progress;
use crate::release::folder::read_limited;
use crate::release::keys::catalogue_key;
use crate::serve::air::{Air, Inventory, Listed, Medium, Programme, Sign};
use crate::serve::serial::Line;
use anyhow::{Context, Result, bail, ensure};
use formats::hex::Digest;
use formats::keys::PublicKey;
use formats::repository as names;
use formats::roles::{Chain, MAX_CHAIN_BYTES};
use serde::Serialize;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;
use tokio_serial::SerialPort;

/// Kilobits a second of datagrams where nothing else is asked for.
const KBIT: u64 = 256;
/// Bits on a line for each byte, and those that a byte has.
const LINE: (u64, u64) = (10, 8);
/// Nothing to send: look again after so long.
const IDLE: Duration = Duration::from_secs(5);
/// How long a line may take no byte.
const STUCK: Duration = Duration::from_secs(60);

/// Broadcasts a repository or release folder, round after round, until it is interrupted: announcements, root documents,
/// manifests, catalogues and payloads up to 64 MiB, erasure-coded and signed symbol by symbol. Receivers need no way back,
/// may begin at any time and miss a third of all. A repository that changes is broadcast as it is from the next round on.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("medium").required(true)))]
pub struct BroadcastCmd {
    /// Repository or release folder.
    repo: PathBuf,
    /// IPv4 group, or address of a single receiver, and port.
    #[arg(long, value_name = "GROUP:PORT", group = "medium")]
    udp: Option<SocketAddrV4>,
    /// Address of the interface by which datagrams leave [default: as the routes say].
    #[arg(long, value_name = "ADDR", requires = "udp")]
    interface: Option<Ipv4Addr>,
    /// Routers that a datagram to a group may pass.
    #[arg(long, value_name = "N", default_value_t = 1, requires = "udp")]
    hops: u32,
    /// Serial line, as /dev/ttyUSB0?baud=9600.
    #[arg(long, value_name = "DEV", value_parser = Line::parse, group = "medium")]
    serial: Option<Line>,
    /// Kilobits a second [default: 256 for datagrams, what a line carries for a line].
    #[arg(long, value_name = "KBIT", value_parser = clap::value_parser!(u64).range(1..=10_000_000))]
    rate: Option<u64>,
    /// The catalogue key, which signs what is broadcast, or a key folder that holds it.
    #[arg(long, visible_alias = "keys", value_name = "PATH")]
    key: PathBuf,
    /// Of payloads, broadcast only this object; repeat for each [default: all that the releases name].
    #[arg(long, value_name = "ID", value_parser = digest)]
    object: Vec<Digest>,
    /// End after so many rounds.
    #[arg(long, value_name = "N")]
    rounds: Option<u64>,
    /// Say what would be broadcast, and how long a round takes; send nothing.
    #[arg(long)]
    plan: bool,
    /// With --plan, print JSON.
    #[arg(long, requires = "plan")]
    json: bool,
}

fn digest(text: &str) -> Result<Digest> {
    Digest::parse(text).with_context(|| format!("`{text}` is no object id of 64 hexadecimal digits"))
}

#[derive(Serialize)]
struct Planned {
    files: Vec<Planes>,
    left_out: Vec<Planes>,
    round_bytes: u64,
    round_s: u64,
}

#[derive(Serialize)]
struct Planes {
    name: String,
    bytes: u64,
}

fn listed(files: &[Listed]) -> Vec<Planes> {
    files.iter().map(|file| Planes { name: file.name.path(), bytes: file.bytes }).collect()
}

impl BroadcastCmd {
    /// Runs the command.
    ///
    /// # Errors
    /// If the folder or the keys cannot be read, the catalogue key is not among them, or nothing can be sent.
    pub fn run(&self) -> Result<ExitCode> {
        let key = catalogue_key(&self.key)?;
        let sign = |message: &[u8]| key.sign(message);
        let mut air = Air::new(self.medium()?, self.bits_per_s());
        let public = key.public()?;
        let mut inventory = self.inventory(public)?;
        let mut programme = Programme::new(&self.repo, &inventory, &sign, None)?;
        let round_bytes = programme.round_bytes(&air);
        let round_s = round_bytes * 8 / self.bits_per_s().max(1);
        if self.plan {
            return self.print(&inventory, round_bytes, round_s);
        }
        for Listed { name, bytes, .. } in &inventory.left_out {
            eprintln!("farhold: {} has {bytes} bytes, which is too long to be broadcast", name.path());
        }
        let (files, place) = (inventory.files.len(), self.place());
        println!(
            "broadcasting {files} files of {} to {place}: {round_bytes} bytes a round, {round_s} s (Ctrl-C ends it)",
            self.repo.display()
        );
        let (mut rounds, mut trouble) = (0, String::new());
        while self.rounds.is_none_or(|most| rounds < most) {
            rounds += 1;
            let bar = Progress::stderr().items(&format!("round {rounds}"), 1000);
            let mut shown = 0;
            programme.round(&mut air, &mut |done, all| {
                bar.add(done * 1000 / all - shown);
                shown = done * 1000 / all;
            })?;
            if inventory.files.is_empty() {
                std::thread::sleep(IDLE);
            }
            match self.renewed(public, &inventory, &programme, &sign) {
                Ok(Some(now)) => {
                    (inventory, programme) = now;
                    trouble.clear();
                }
                Ok(None) => trouble.clear(),
                // Somebody publishes or tidies up; what was there is as good as before.
                Err(error) => {
                    let why = format!("{error:#}");
                    if why != trouble {
                        eprintln!(
                            "farhold: {why}; what was broadcast so far goes on, and it is looked again after each round"
                        );
                        trouble = why;
                    }
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    fn print(&self, inventory: &Inventory, round_bytes: u64, round_s: u64) -> Result<ExitCode> {
        let (files, left_out) = (listed(&inventory.files), listed(&inventory.left_out));
        let planned = Planned { files, left_out, round_bytes, round_s };
        if self.json {
            println!("{}", serde_json::to_string(&planned).context("print the plan")?);
            return Ok(ExitCode::SUCCESS);
        }
        for file in &planned.files {
            println!("{:>12}  {}", file.bytes, file.name);
        }
        for file in &planned.left_out {
            println!("{:>12}  {} is too long to be broadcast", file.bytes, file.name);
        }
        println!("a round takes {round_bytes} bytes, {round_s} s");
        Ok(ExitCode::SUCCESS)
    }

    /// What is there now, if it is something else.
    fn renewed(
        &self,
        key: PublicKey,
        inventory: &Inventory,
        programme: &Programme,
        sign: &Sign<'_>,
    ) -> Result<Option<(Inventory, Programme)>> {
        let now = self.inventory(key)?;
        if now == *inventory {
            return Ok(None);
        }
        let programme = Programme::new(&self.repo, &now, sign, Some(programme))?;
        Ok(Some((now, programme)))
    }

    fn inventory(&self, key: PublicKey) -> Result<Inventory> {
        let roots =
            read_limited(&self.repo.join(names::ROOTS), MAX_CHAIN_BYTES as u64).with_context(|| {
                format!(
                    "{0} is no repository: `farhold publish RELEASE --repo {0}` makes one",
                    self.repo.display()
                )
            })?;
        let inventory = Inventory::of(&self.repo, &roots, &self.object)?;
        if inventory.frames.is_empty() && inventory.files.is_empty() {
            bail!(
                "{0} has nothing to broadcast: `farhold publish RELEASE --repo {0}` puts a release there",
                self.repo.display()
            );
        }
        let chain = Chain::parse(&inventory.roots).context("read the root documents")?;
        ensure!(
            key == chain.newest().catalogue,
            "{} is not the catalogue key of {}'s root version {}: receivers would believe nothing that it signs",
            self.key.display(),
            self.repo.display(),
            chain.newest().version
        );
        Ok(inventory)
    }

    fn bits_per_s(&self) -> u64 {
        let (bits, of) = LINE;
        let line = self.serial.as_ref().map(|line| u64::from(line.baud) * of / bits);
        self.rate.map(|kbit| kbit * 1000).or(line).unwrap_or(KBIT * 1000)
    }

    fn place(&self) -> String {
        let udp = self.udp.map(|to| to.to_string());
        udp.or(self.serial.as_ref().map(|line| line.device.clone())).unwrap_or_default()
    }

    fn medium(&self) -> Result<Medium> {
        if let Some(line) = &self.serial {
            return open(line).map(Medium::Serial);
        }
        let to = self.udp.context("name --udp or --serial")?;
        // Datagrams to a group leave by the interface whose address the socket has.
        let from = SocketAddrV4::new(self.interface.unwrap_or(Ipv4Addr::UNSPECIFIED), 0);
        let socket = UdpSocket::bind(from).with_context(|| format!("send from {}", from.ip()))?;
        socket.set_multicast_ttl_v4(self.hops).context("set how far datagrams go")?;
        Ok(Medium::Udp(socket, to))
    }
}

fn open(line: &Line) -> Result<Box<dyn SerialPort>> {
    let Line { device, baud } = line;
    let port = tokio_serial::new(device, *baud).timeout(STUCK).open();
    port.with_context(|| format!("open {device} at {baud} bit/s: is it there, and may you use it?"))
}
