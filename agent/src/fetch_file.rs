//! `farhold-agent fetch`: one file from a source, over any carrier, with the journal of the update engine: to see what a
//! link is worth. It needs no daemon.

use crate::io::clock::boot_ms;
use crate::io::disk::BlockDevice;
use crate::io::durable;
use crate::update::carrier::mqtt::Identity;
use crate::update::carrier::{Carriers, Failure, Tally};
use crate::update::fetch::{Control, Interval, fetch};
use crate::update::plan::Object;
use crate::update::staging::{self, Staging, Unreadable};
use crate::update::step::Fault;
use anyhow::{Context, Result, bail};
use formats::hex::Digest;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Longest small file, bytes.
const SMALL_MAX: u64 = 256 << 10;

#[derive(clap::Args)]
pub struct Fetch {
    /// Where from: a folder, http(s)://…, mqtt(s)://…, serial:DEVICE?baud=N or cast:GROUP:PORT
    #[arg(long)]
    source: String,
    /// A broadcast that is listened to meanwhile: only what it does not bring is fetched; repeat for each
    #[arg(long, value_name = "CAST")]
    listen: Vec<String>,
    /// Name in the repository, as `roots` or `objects/<id>`
    name: String,
    /// Where to put it; what is not complete stays beside it in FILE.part
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// Length of an object in bytes: then it is verified, and resumed
    #[arg(long, requires = "block_log2")]
    bytes: Option<u64>,
    /// Binary logarithm of its block size
    #[arg(long, value_parser = clap::value_parser!(u8).range(8..=22))]
    block_log2: Option<u8>,
    /// Give up after so many attempts in a row that brought nothing
    #[arg(long, default_value_t = 20)]
    tries: u32,
    /// Seconds between two attempts
    #[arg(long, default_value_t = 1.0)]
    pause: f64,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

/// What came, for people at a terminal.
#[derive(Default)]
struct Watch {
    paid: u64,
    done: u64,
    shown_ms: u64,
}

impl Control for Watch {
    fn stopped(&self) -> bool {
        false
    }
    fn now_ms(&self) -> u64 {
        boot_ms()
    }
    fn progress(&mut self, _part: &'static str, done: u64, total: u64) {
        self.done = done;
        if boot_ms() >= self.shown_ms + 500 && std::io::stderr().is_terminal() {
            self.shown_ms = boot_ms();
            eprint!("\r\x1b[K{done} of {total} bytes, {} over the link", self.paid);
        }
    }
    fn fetched(&mut self, bytes: u64) {
        self.paid += bytes;
    }
}

impl Fetch {
    /// Runs the command.
    ///
    /// # Errors
    /// If the file did not come.
    pub fn run(&self) -> Result<ExitCode> {
        let begun = boot_ms();
        let (bytes, paid, failures) = match (self.bytes, self.block_log2) {
            (Some(bytes), Some(block_log2)) => self.object(bytes, block_log2)?,
            _ => self.small()?,
        };
        let seconds = (boot_ms() - begun) as f64 / 1e3;
        let text = if self.json {
            serde_json::json!({ "bytes": bytes, "paid": paid, "seconds": seconds, "failures": failures })
                .to_string()
        } else {
            format!("{bytes} bytes in {seconds:.1} s, {paid} over the link, {failures} interruptions")
        };
        writeln!(std::io::stdout(), "{text}").context("write to standard output")?;
        Ok(ExitCode::SUCCESS)
    }

    /// Tries until it succeeds, or nothing comes any more.
    fn insist<T>(&self, mut attempt: impl FnMut() -> (Result<T, Failure>, u64)) -> Result<(T, u32)> {
        let (mut failures, mut fruitless, mut before) = (0, 0, 0);
        loop {
            let (ended, done) = attempt();
            let failure = match ended {
                Ok(value) => return Ok((value, failures)),
                Err(failure) => failure,
            };
            failures += 1;
            fruitless = if done > before { 0 } else { fruitless + 1 };
            before = done;
            let again = match failure.fault {
                Fault::Unreachable(_) => true,
                Fault::Absent | Fault::Damaged | Fault::Incomplete | Fault::Local => false,
            };
            if !again || fruitless >= self.tries {
                bail!("fetch {} from {}: {}", self.name, self.source, failure.why);
            }
            tracing::debug!(why = failure.why, "again");
            std::thread::sleep(Duration::from_secs_f64(self.pause.clamp(0.0, 3600.0)));
        }
    }

    /// A session of its own with a broker: one under the device's name would end the daemon's.
    fn carriers(&self) -> Result<Carriers> {
        let mut drawn = [0; 8];
        getrandom::fill(&mut drawn).context("draw a name")?;
        let identity = Identity {
            device: format!("fetch-{}", formats::hex::encode(&drawn)),
            retained: vec![self.name.clone()],
            seed: u64::from_le_bytes(drawn),
        };
        let mut carriers = Carriers::new(identity, |_| {});
        carriers.tune(&self.listen);
        Ok(carriers)
    }

    fn small(&self) -> Result<(u64, u64, u32)> {
        let mut tally = Tally::default();
        let mut carriers = self.carriers()?;
        let (bytes, failures) = self.insist(|| {
            let carrier = carriers.open(&self.source);
            (carrier.and_then(|mut carrier| carrier.whole(&self.name, SMALL_MAX, &mut tally)), 0)
        })?;
        durable::write(&self.out, &bytes, 0o644)?;
        Ok((bytes.len() as u64, tally.0, failures))
    }

    fn object(&self, bytes: u64, block_log2: u8) -> Result<(u64, u64, u32)> {
        let digits = self.name.strip_prefix("objects/").unwrap_or(&self.name);
        let id = Digest::parse(digits).with_context(|| format!("{} is no object", self.name))?;
        let object = Object { id, bytes, block_log2 };
        let geometry = object.geometry().map_err(anyhow::Error::msg)?;
        let part = PathBuf::from(format!("{}.part", self.out.display()));
        let file = File::options().create(true).truncate(false).write(true).open(&part);
        file.and_then(|file| file.set_len(staging::bytes(&geometry)))
            .with_context(|| format!("make {}", part.display()))?;
        let mut staged = Staging::open(BlockDevice::open(&part)?, &object)?;
        let mut watch = Watch::default();
        let mut carriers = self.carriers()?;
        let (_, failures) = self.insist(|| {
            let carrier = carriers.open(&self.source);
            let ended = carrier
                .and_then(|mut carrier| fetch(&mut staged, carrier.as_mut(), Interval::USUAL, &mut watch));
            (ended, watch.done)
        })?;
        copy(&mut staged, geometry.blocks(), &self.out)?;
        std::fs::remove_file(&part).with_context(|| format!("remove {}", part.display()))?;
        Ok((bytes, watch.paid, failures))
    }
}

fn copy(staged: &mut Staging<BlockDevice>, blocks: u64, to: &Path) -> Result<()> {
    let mut file = File::create(to).with_context(|| format!("make {}", to.display()))?;
    for index in 0..blocks {
        match staged.read(index) {
            Ok(block) => file.write_all(&block).with_context(|| format!("write {}", to.display()))?,
            Err(Unreadable::Missing(index)) => {
                bail!("block {index} is no longer what it was; run this again")
            }
            Err(Unreadable::Disk(error)) => return Err(error),
        }
    }
    file.sync_all().with_context(|| format!("flush {}", to.display()))
}
