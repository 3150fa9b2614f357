//! What updates are for, told once and used by a test and by `make demo`: a release over a slow link, the power cut in
//! the middle, the trial; then a release that is not healthy, and the way back.

use crate::disk::DiskImage;
use crate::server::{Sent, Server};
use crate::status::settled;
use crate::testing::{TestVm, build_folder};
use crate::vm::BOOT_PATIENCE;
use crate::workshop::{Published, Workshop};
use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use formats::status::{Status, UpdateStatus};
use std::path::Path;
use std::time::{Duration, Instant};

/// The link's rate.
pub const RATE_KBIT: u64 = 1000;
/// Fetching and writing under emulation, and a boot.
const PATIENCE: Duration = Duration::from_secs(900);
/// Parts of a release smaller than this come too quickly to be cut.
const CUT_FROM_BYTES: u64 = 500_000;
/// Packages that the second release adds; any that bring a megabyte do.
const TOOLS: [&str; 3] = ["ethtool", "htop", "strace"];

/// A device, the repository it is given, and where to tell what happens.
pub struct Scenario<'a> {
    workshop: Workshop,
    server: Server,
    device: TestVm,
    say: &'a mut dyn FnMut(&str),
}

/// How one update went.
#[derive(Clone, Debug)]
pub struct Told {
    /// What the publisher offered.
    pub published: Published,
    /// What went over the link.
    pub sent: Sent,
    /// The device afterwards.
    pub status: Status,
}

impl<'a> Scenario<'a> {
    /// Publishes the build under test, at no more than `rate_kbit`, and boots a device from it.
    ///
    /// # Errors
    /// If a program fails, or the device does not boot.
    pub fn begin(folder: &Path, rate_kbit: Option<u64>, say: &'a mut dyn FnMut(&str)) -> Result<Self> {
        let mut workshop = Workshop::new(folder)?;
        let first = build_folder()?;
        workshop.publish(&first)?;
        let log = folder.join("serve.log");
        let server = Server::start(workshop.programs(), &workshop.repository(), rate_kbit, log)?;
        let image = DiskImage::new(first.join("disk.img"));
        let device = TestVm::create_with("device", &[image.path()], |_| {})?;
        let status = device.boot()?;
        let runs = runs(&status)?;
        say(&format!("the device runs {} in slot {}", runs.1, runs.0));
        Ok(Self { workshop, server, device, say })
    }

    fn tell(&mut self, line: &str) {
        (self.say)(line);
    }

    /// A release with more packages, fetched over the slow link with a power cut in the middle, tried and kept.
    ///
    /// # Errors
    /// If anything goes otherwise.
    pub fn good_release(&mut self) -> Result<Told> {
        self.workshop.add_packages("site-tools", &TOOLS)?;
        let published = self.offer("1.0.1")?;
        let (before, begun) = (self.server.sent()?, Instant::now());
        self.order()?;
        let part = self.device.wait_status("half of the payload", PATIENCE, |status| {
            update(status).is_some_and(|now| {
                now.phase == "fetching"
                    && now.total_bytes >= CUT_FROM_BYTES
                    && 2 * now.done_bytes >= now.total_bytes
            })
        })?;
        let progress = update(&part).context("no progress")?;
        let (done, total) = (progress.done_bytes, progress.total_bytes);
        self.device.cut()?;
        self.tell(&format!("  power cut after {done} of {total} bytes of a payload"));
        self.device.power_on()?;
        let status = self.settled_with("1.0.1")?;
        let sent = since(self.server.sent()?, before);
        let seconds = begun.elapsed().as_secs();
        self.tell(&format!(
            "  resumed, tried, committed in slot {}: {} bytes over the link, {} of them twice, {seconds} s in all",
            runs(&status)?.0,
            sent.bytes,
            sent.again
        ));
        Ok(Told { published, sent, status })
    }

    /// A release whose health check cannot pass, left again by the device itself.
    ///
    /// # Errors
    /// If anything goes otherwise.
    pub fn sick_release(&mut self) -> Result<Told> {
        let check = "  - { name: shop, kind: port, port: 8080, deadline_s: 30 }\n";
        self.workshop.change("\nsettings:\n", &format!("{check}\nsettings:\n"))?;
        let published = self.offer("1.0.2")?;
        let (before, begun) = (self.server.sent()?, Instant::now());
        self.order()?;
        let status = self.settled_with("1.0.2")?;
        let sent = since(self.server.sent()?, before);
        let seconds = begun.elapsed().as_secs();
        let last = update(&status).and_then(|update| update.last.clone()).unwrap_or_default();
        let (slot, version) = runs(&status)?;
        self.tell(&format!(
            "  {} bytes over the link; {version} runs again in slot {slot} after {seconds} s",
            sent.bytes
        ));
        self.tell(&format!("  it says: {last}"));
        Ok(Told { published, sent, status })
    }

    /// An ordinary release, taken without disturbance.
    ///
    /// # Errors
    /// If anything goes otherwise.
    pub fn release(&mut self, version: &str) -> Result<Told> {
        let published = self.offer(version)?;
        let before = self.server.sent()?;
        self.order()?;
        let status = self.settled_with(version)?;
        let sent = since(self.server.sent()?, before);
        let (slot, now) = runs(&status)?;
        self.tell(&format!("  {now} runs in slot {slot}: {} bytes over the link", sent.bytes));
        Ok(Told { published, sent, status })
    }

    /// Bakes and publishes a version, and tells what it costs.
    ///
    /// # Errors
    /// If `farhold` fails, or publishes no delta.
    pub fn offer(&mut self, version: &str) -> Result<Published> {
        let build = self.workshop.bake(version)?;
        let published = self.workshop.publish(&build)?;
        let (full, delta) = (published.full_bytes, published.delta_bytes);
        ensure!(delta > 0 && delta < full, "no delta to {version} was published: {published:?}");
        let at = |bytes: u64| bytes * 8 / (RATE_KBIT * 1000);
        self.tell(&format!(
            "{version} is published: {full} bytes in full ({} s at {RATE_KBIT} kbit/s), {delta} bytes as delta ({} s)",
            at(full),
            at(delta)
        ));
        Ok(published)
    }

    /// Tells the device to take what is published.
    ///
    /// # Errors
    /// If the device cannot be reached or refuses.
    pub fn order(&self) -> Result<()> {
        self.device.sh(&format!("farhold-agent update --now --source {}", self.server.url())).map(drop)
    }

    /// Waits until the device has done with a version: committed it or left it.
    fn settled_with(&self, version: &str) -> Result<Status> {
        let ended = format!("Version {version} was ");
        self.device.wait_status(
            &format!("the end of the update to {version}"),
            PATIENCE.max(BOOT_PATIENCE),
            |status| {
                let done = update(status).is_some_and(|now| {
                    now.phase == "idle" && now.last.as_ref().is_some_and(|last| last.starts_with(&ended))
                });
                done && settled(status)
            },
        )
    }

    /// The device, for questions of one's own.
    pub fn device(&self) -> &TestVm {
        &self.device
    }
}

/// Slot and version that run.
///
/// # Errors
/// If the agent does not know.
pub fn runs(status: &Status) -> Result<(Slot, &str)> {
    let observed = status.observed.as_ref().context("the agent does not know what runs")?;
    Ok((observed.slot, &observed.version))
}

fn update(status: &Status) -> Option<&UpdateStatus> {
    status.update.as_ref()
}

fn since(now: Sent, before: Sent) -> Sent {
    Sent { bytes: now.bytes - before.bytes, again: now.again - before.again }
}
