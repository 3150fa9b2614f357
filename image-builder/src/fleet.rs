//! What devices have reported, one JSON file each in a folder: how a device stands, and its latest events. A report that
//! comes twice, over one carrier or two, changes nothing.

use crate::release::folder::read_limited;
use crate::release::keys::replace_file;
use anyhow::{Context, Result};
use formats::hex;
use formats::report::{Report, ReportBody, ReportId};
use serde::{Deserialize, Serialize};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// Events of a device that are kept.
const EVENTS_MAX: usize = 100;
/// Numbers of reports that are remembered for each device.
const SEEN_MAX: usize = 512;
/// Devices that are kept.
const DEVICES_MAX: usize = 100_000;
/// Longest file of a device.
const FILE_MAX: u64 = 256 << 10;

/// A device as it was last heard of.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    /// Machine id.
    pub device: String,
    /// Host name.
    pub node: String,
    /// Site, or nothing.
    pub site: String,
    /// Target tag of product, board and processor.
    pub target: String,
    /// Running version.
    pub version: String,
    /// First digits of the running slot's roothash.
    pub roothash: String,
    /// Newest accepted release, as `1.42`.
    pub accepted: String,
    /// Where an update stands.
    pub phase: String,
    /// What goes on, in words.
    pub text: String,
    /// Errors and warnings that it reports.
    pub findings: u8,
    /// When a report of it last came, seconds since 1970 by this machine's clock.
    pub heard_s: u64,
    /// Latest events, newest last.
    pub events: Vec<Event>,
    /// Number of the report that says how it stands.
    pub(crate) standing: Option<(u32, u32)>,
    /// Numbers of reports that have come.
    pub(crate) seen: Vec<(u32, u32)>,
}

/// Something that happened on a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// When it came, seconds since 1970 by this machine's clock.
    pub heard_s: u64,
    /// Seconds since the kernel of that boot started.
    pub uptime_s: u32,
    /// Stable code.
    pub code: String,
    /// In words.
    pub text: String,
}

impl Device {
    /// Takes a report in. Gives whether it is a new one.
    pub fn take(&mut self, report: &Report, heard_s: u64) -> bool {
        let ReportId { epoch, number } = report.id;
        if self.seen.contains(&(epoch, number)) {
            return false;
        }
        self.seen.push((epoch, number));
        let excess = self.seen.len().saturating_sub(SEEN_MAX);
        self.seen.drain(..excess);
        self.device = report.device_name();
        self.heard_s = heard_s;
        match &report.body {
            // One that was overtaken says less than what is known.
            ReportBody::Status(_)
                if self.standing.is_some_and(|(known, newest)| known == epoch && newest > number) => {}
            ReportBody::Status(standing) => {
                self.standing = Some((epoch, number));
                self.node.clone_from(&standing.node);
                self.site.clone_from(&standing.site);
                self.target = hex::encode(&standing.target);
                self.version.clone_from(&standing.version);
                self.roothash = hex::encode(&standing.roothash);
                self.accepted = format!("{}.{}", standing.accepted.0, standing.accepted.1);
                self.phase = standing.phase_name().to_owned();
                self.text.clone_from(&standing.text);
                self.findings = standing.findings;
            }
            ReportBody::Event { uptime_s, code, text } => {
                let (uptime_s, code, text) = (*uptime_s, code.clone(), text.clone());
                self.events.push(Event { heard_s, uptime_s, code, text });
                let excess = self.events.len().saturating_sub(EVENTS_MAX);
                self.events.drain(..excess);
            }
        }
        true
    }
}

/// The folder of reports.
pub struct Reports {
    folder: PathBuf,
    devices: usize,
}

impl Reports {
    /// Opens the folder; makes it if it is not there.
    ///
    /// # Errors
    /// If it cannot be made or read.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let devices = fs::read_dir(folder).with_context(|| format!("read {}", folder.display()))?.count();
        Ok(Self { folder: folder.to_owned(), devices })
    }

    /// Keeps a report; it is on the disk when this returns.
    ///
    /// # Errors
    /// If a file cannot be read or written, or there are too many devices.
    pub fn take(&mut self, report: &Report) -> Result<()> {
        let path = self.folder.join(format!("{}.json", report.device_name()));
        let mut device = match path.exists() {
            true => read(&path)?,
            false => {
                anyhow::ensure!(self.devices < DEVICES_MAX, "{DEVICES_MAX} devices have reported already");
                self.devices += 1;
                Device::default()
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if device.take(report, now) {
            replace_file(&path, &serde_json::to_vec(&device).context("encode a report")?)?;
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<Device> {
    let bytes = read_limited(path, FILE_MAX)?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("read {}: remove it if it is damaged", path.display()))
}

/// All devices that have reported to a folder, by site and name.
///
/// # Errors
/// If the folder or a file cannot be read.
pub fn devices(folder: &Path) -> Result<Vec<Device>> {
    let entries = fs::read_dir(folder)
        .with_context(|| format!("read {}: `farhold serve --mqtt` keeps reports there", folder.display()))?;
    let mut all = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", folder.display()))?.path();
        if path.extension().is_some_and(|kind| kind == "json") {
            all.push(read(&path)?);
        }
    }
    all.sort_by(|a: &Device, b| (&a.site, &a.node, &a.device).cmp(&(&b.site, &b.node, &b.device)));
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use formats::report::Standing;

    fn report(number: u32, body: ReportBody) -> Report {
        Report { id: ReportId { epoch: 1, number }, device: [0xcd; 16], body }
    }

    #[test]
    fn reports_count_once_in_any_order_and_survive_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let status = |number, version: &str| {
            report(number, ReportBody::Status(Standing { version: version.into(), ..Standing::default() }))
        };
        let event = |number| {
            report(number, ReportBody::Event { uptime_s: 1, code: "boot".into(), text: "again".into() })
        };
        for _ in 0..2 {
            let mut reports = Reports::open(folder.path()).unwrap();
            for one in [event(1), status(4, "2.0"), status(3, "1.0"), event(1), event(2), status(4, "2.0")] {
                reports.take(&one).unwrap();
            }
        }
        let found = devices(folder.path()).unwrap();
        assert_eq!(found.len(), 1);
        let device = &found[0];
        assert_eq!((device.version.as_str(), device.events.len(), device.seen.len()), ("2.0", 2, 4));
        fs::write(folder.path().join(format!("{}.json", device.device)), "{").unwrap();
        let error = format!("{:#}", devices(folder.path()).unwrap_err());
        assert!(error.contains("remove it if it is damaged"), "{error}");
    }

    #[test]
    fn a_device_that_reports_without_end_takes_little_room() {
        let mut device = Device::default();
        for number in 0..5000 {
            device.take(
                &report(
                    number,
                    ReportBody::Event { uptime_s: 1, code: "x".repeat(32), text: "y".repeat(120) },
                ),
                1,
            );
        }
        assert!(serde_json::to_vec(&device).unwrap().len() < FILE_MAX as usize / 4);
    }
}
