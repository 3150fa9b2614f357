//! What a device reports over carriers, and the receipts for it: at most 200 bytes each, so that it fits any of them.
//! Layout: `docs/formats.md`, "Reports". A report has a number of its own, by which one that came twice is known.

use crate::hex::{self, Digest};

/// Type 4 (report), layout version 1.
const REPORT: u8 = 0x41;
/// Type 5 (receipt), layout version 1.
const RECEIPT: u8 = 0x51;
/// Longest report.
pub const MAX_REPORT_BYTES: usize = 200;
/// Most reports that a receipt names.
pub const MAX_RECEIPTS: usize = 32;
const NAME_MAX: usize = 24;
const VERSION_MAX: usize = 40;
const CODE_MAX: usize = 32;

/// Which report: unique for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ReportId {
    /// Drawn when the device's database was made.
    pub epoch: u32,
    /// Rises within it.
    pub number: u32,
}

/// A report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Which report.
    pub id: ReportId,
    /// The machine id.
    pub device: [u8; 16],
    /// What it says.
    pub body: ReportBody,
}

/// What a report says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReportBody {
    /// How the device stands. A later one replaces it.
    Status(Standing),
    /// Something that happened.
    Event {
        /// Seconds since the kernel of that boot started.
        uptime_s: u32,
        /// Stable code, as `update-committed`.
        code: String,
        /// In words; cut to what fits.
        text: String,
    },
}

/// How a device stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// Target tag of product, board and processor.
    pub target: [u8; 8],
    /// Where an update stands: position in [`PHASES`].
    pub phase: u8,
    /// First bytes of the running slot's roothash.
    pub roothash: [u8; 8],
    /// Newest accepted release: root version and sequence.
    pub accepted: (u16, u32),
    /// Errors and warnings that an operator should look at.
    pub findings: u8,
    /// Running version.
    pub version: String,
    /// Site, if it belongs to one.
    pub site: String,
    /// Host name.
    pub node: String,
    /// What goes on or became of the last update, in words; cut to what fits.
    pub text: String,
}

/// Names of the phases of an update, in the order of their numbers.
pub const PHASES: [&str; 7] =
    ["idle", "fetching", "installing", "trial", "committing", "leaving", "returning"];

impl Standing {
    /// The number of a phase's name; 255 for one that version 1 does not have.
    pub fn phase_number(name: &str) -> u8 {
        PHASES.iter().position(|known| *known == name).map_or(u8::MAX, |at| at as u8)
    }
    /// The name of the phase.
    pub fn phase_name(&self) -> &'static str {
        PHASES.get(usize::from(self.phase)).copied().unwrap_or("unknown")
    }
    /// The first bytes of a roothash.
    pub fn roothash(digest: &Digest) -> [u8; 8] {
        std::array::from_fn(|n| digest.0[n])
    }
}

/// Why bytes are no report or receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReportError {
    /// Too short or too long.
    #[error("report of {is} bytes has the wrong length")]
    Length {
        /// Bytes that came.
        is: usize,
    },
    /// Type, version or kind that version 1 does not have.
    #[error("{field} {is} is not known")]
    Kind {
        /// Which field.
        field: &'static str,
        /// Its value.
        is: u8,
    },
    /// A text that is not UTF-8, or has control characters.
    #[error("{field} is no plain text")]
    Text {
        /// Which text.
        field: &'static str,
    },
}

/// The longest start of `text` that has at most `bytes` bytes and no control characters.
fn cut(text: &str, bytes: usize) -> String {
    let mut out = String::new();
    for c in text.chars().map(|c| if c.is_control() { ' ' } else { c }) {
        if out.len() + c.len_utf8() > bytes {
            break;
        }
        out.push(c);
    }
    out
}

fn put(out: &mut Vec<u8>, text: &str, most: usize) {
    let text = cut(text, most.min(MAX_REPORT_BYTES.saturating_sub(out.len() + 1)));
    out.push(text.len() as u8);
    out.extend(text.as_bytes());
}

struct Bytes<'b> {
    all: usize,
    rest: &'b [u8],
}

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], ReportError> {
        let (now, later) = self.rest.split_first_chunk().ok_or(ReportError::Length { is: self.all })?;
        self.rest = later;
        Ok(*now)
    }
    fn text(&mut self, field: &'static str, most: usize) -> Result<String, ReportError> {
        let [length] = self.take()?;
        let wrong = ReportError::Length { is: self.all };
        if usize::from(length) > most {
            return Err(wrong);
        }
        let (now, later) = self.rest.split_at_checked(length.into()).ok_or(wrong)?;
        self.rest = later;
        let text = std::str::from_utf8(now).ok().filter(|text| !text.chars().any(char::is_control));
        text.map(str::to_owned).ok_or(ReportError::Text { field })
    }
    fn end(&self) -> Result<(), ReportError> {
        if self.rest.is_empty() { Ok(()) } else { Err(ReportError::Length { is: self.all }) }
    }
}

impl Report {
    /// Writes it. Texts that are too long are cut.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![REPORT];
        out.extend(self.id.epoch.to_le_bytes());
        out.extend(self.id.number.to_le_bytes());
        out.extend(self.device);
        match &self.body {
            ReportBody::Status(standing) => {
                out.push(1);
                out.extend(standing.target);
                out.push(standing.phase);
                out.extend(standing.roothash);
                out.extend(standing.accepted.0.to_le_bytes());
                out.extend(standing.accepted.1.to_le_bytes());
                out.push(standing.findings);
                put(&mut out, &standing.version, VERSION_MAX);
                put(&mut out, &standing.site, NAME_MAX);
                put(&mut out, &standing.node, NAME_MAX);
                put(&mut out, &standing.text, MAX_REPORT_BYTES);
            }
            ReportBody::Event { uptime_s, code, text } => {
                out.push(2);
                out.extend(uptime_s.to_le_bytes());
                put(&mut out, code, CODE_MAX);
                put(&mut out, text, MAX_REPORT_BYTES);
            }
        }
        out
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`ReportError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, ReportError> {
        if bytes.len() > MAX_REPORT_BYTES {
            return Err(ReportError::Length { is: bytes.len() });
        }
        let mut from = Bytes { all: bytes.len(), rest: bytes };
        let [kind] = from.take()?;
        if kind != REPORT {
            return Err(ReportError::Kind { field: "type and version", is: kind });
        }
        let id =
            ReportId { epoch: u32::from_le_bytes(from.take()?), number: u32::from_le_bytes(from.take()?) };
        let device = from.take()?;
        let [kind] = from.take()?;
        let body = match kind {
            1 => ReportBody::Status(Standing {
                target: from.take()?,
                phase: from.take::<1>()?[0],
                roothash: from.take()?,
                accepted: (u16::from_le_bytes(from.take()?), u32::from_le_bytes(from.take()?)),
                findings: from.take::<1>()?[0],
                version: from.text("version", VERSION_MAX)?,
                site: from.text("site", NAME_MAX)?,
                node: from.text("node", NAME_MAX)?,
                text: from.text("text", MAX_REPORT_BYTES)?,
            }),
            2 => ReportBody::Event {
                uptime_s: u32::from_le_bytes(from.take()?),
                code: from.text("code", CODE_MAX)?,
                text: from.text("text", MAX_REPORT_BYTES)?,
            },
            is => return Err(ReportError::Kind { field: "kind of report", is }),
        };
        from.end()?;
        Ok(Self { id, device, body })
    }

    /// The machine id as text.
    pub fn device_name(&self) -> String {
        hex::encode(&self.device)
    }
}

/// Writes a receipt for at most [`MAX_RECEIPTS`] reports.
pub fn encode_receipt(ids: &[ReportId]) -> Vec<u8> {
    let mut out = vec![RECEIPT];
    for id in ids.iter().take(MAX_RECEIPTS) {
        out.extend(id.epoch.to_le_bytes());
        out.extend(id.number.to_le_bytes());
    }
    out
}

/// Reads a receipt.
///
/// # Errors
/// [`ReportError`].
pub fn parse_receipt(bytes: &[u8]) -> Result<Vec<ReportId>, ReportError> {
    let wrong = ReportError::Length { is: bytes.len() };
    let (kind, rest) = bytes.split_first().ok_or(wrong)?;
    if *kind != RECEIPT {
        return Err(ReportError::Kind { field: "type and version", is: *kind });
    }
    let (ids, left) = rest.as_chunks::<8>();
    if !left.is_empty() || ids.is_empty() || ids.len() > MAX_RECEIPTS {
        return Err(wrong);
    }
    let word = |id: &[u8; 8], at: usize| u32::from_le_bytes(std::array::from_fn(|n| id[at + n]));
    Ok(ids.iter().map(|id| ReportId { epoch: word(id, 0), number: word(id, 4) }).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report(body: ReportBody) -> Report {
        Report { id: ReportId { epoch: 9, number: 3 }, device: [0xab; 16], body }
    }

    #[test]
    fn the_longest_report_fits_a_satellite_message() {
        let long = "ä\n".repeat(300);
        let standing = Standing {
            version: long.clone(),
            site: long.clone(),
            node: long.clone(),
            text: long.clone(),
            ..Standing::default()
        };
        for body in
            [ReportBody::Status(standing), ReportBody::Event { uptime_s: 1, code: long.clone(), text: long }]
        {
            let bytes = report(body).encode();
            assert!(bytes.len() > MAX_REPORT_BYTES - 4 && bytes.len() <= MAX_REPORT_BYTES, "{}", bytes.len());
            let parsed = Report::parse(&bytes).unwrap();
            assert_eq!(parsed.encode(), bytes);
        }
    }

    #[test]
    fn receipts_name_reports() {
        let ids = [ReportId { epoch: 1, number: 2 }, ReportId { epoch: u32::MAX, number: 0 }];
        assert_eq!(parse_receipt(&encode_receipt(&ids)), Ok(ids.to_vec()));
        for bad in [&[][..], &[RECEIPT], &[RECEIPT, 1, 2], &[REPORT; 9]] {
            assert!(parse_receipt(bad).is_err());
        }
        assert!(parse_receipt(&[&[RECEIPT][..], &[0; 8 * (MAX_RECEIPTS + 1)]].concat()).is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_is_what_it_encodes_to(bytes in prop::collection::vec(any::<u8>(), 0..210)) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = REPORT;
            }
            if let Some(kind) = bytes.get_mut(25) {
                *kind = 1 + *kind % 2;
            }
            if let Ok(report) = Report::parse(&bytes) {
                prop_assert_eq!(report.encode(), bytes);
            }
        }
    }
}
