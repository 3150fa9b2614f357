//! Requests to and answers from Linux device-mapper, as bytes; the init makes the root device with them and the agent
//! reads its table back.
//!
//! Follows the kernel's `include/uapi/linux/dm-ioctl.h`, interface 4.0. Both processors are little-endian, so the
//! "host order" of that file is little-endian here. Knows nothing of files: who calls `ioctl` is elsewhere.

use crate::hex::{self, Digest};
use crate::verity::{BLOCK, Parameters};

/// Name of the device that carries the root.
pub const ROOT_NAME: &str = "farhold-root";
/// Where requests go.
pub const CONTROL: &str = "/dev/mapper/control";
/// Bytes of a request and of the room for its answer.
pub const REQUEST_BYTES: usize = 4096;

const HEADER: usize = 312;
const TARGET: usize = 40;
const FLAG_READ_ONLY: u32 = 1;
const FLAG_STATUS_TABLE: u32 = 1 << 4;

/// What is asked of device-mapper; the numbers are those of `dm-ioctl.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Makes an empty device.
    Create = 3,
    /// Removes a device.
    Remove = 4,
    /// Makes the loaded table active (`DM_DEV_SUSPEND` without the suspend flag).
    Resume = 6,
    /// Loads a table.
    Load = 9,
    /// Reads the active table.
    Table = 12,
}

impl Command {
    /// The `ioctl` request number: read and write, type 0xfd, 312 bytes.
    pub const fn request(self) -> u32 {
        (3 << 30) | ((HEADER as u32) << 16) | (0xfd << 8) | self as u32
    }
}

/// The verity table of a root device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerityTable {
    /// Data device, as a path when loading, as `major:minor` when read back.
    pub data: String,
    /// Hash device.
    pub hash: String,
    /// Block count and salt.
    pub parameters: Parameters,
    /// Root of the tree.
    pub roothash: Digest,
    /// Whether a damaged block restarts the machine instead of failing the read.
    pub restart: bool,
}

impl VerityTable {
    /// The table's text; the tree begins in the second block, behind the superblock.
    pub fn text(&self) -> String {
        let Self { data, hash, parameters, roothash, restart } = self;
        let salt = hex::encode(&parameters.salt);
        let blocks = parameters.data_blocks;
        let options = if *restart { " 1 restart_on_corruption" } else { "" };
        format!("1 {data} {hash} {BLOCK} {BLOCK} {blocks} 1 sha256 {roothash} {salt}{options}")
    }

    /// Parses a table's text; anything but what [`VerityTable::text`] writes gives `None`.
    pub fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_ascii_whitespace().collect();
        let (fixed, options) = words.split_at_checked(10)?;
        let table = Self {
            data: fixed[1].to_owned(),
            hash: fixed[2].to_owned(),
            parameters: Parameters { data_blocks: fixed[5].parse().ok()?, salt: hex::decode(fixed[9])? },
            roothash: Digest::parse(fixed[8])?,
            restart: options.contains(&"restart_on_corruption"),
        };
        (table.text() == words.join(" ")).then_some(table)
    }

    /// Sectors of the device.
    fn sectors(&self) -> u64 {
        self.parameters.data_blocks * (BLOCK / 512) as u64
    }
}

/// A request about the device `name`, with a table for [`Command::Load`].
pub fn request(command: Command, name: &str, table: Option<&VerityTable>) -> Vec<u8> {
    let mut bytes = vec![0u8; REQUEST_BYTES];
    let flags = match command {
        Command::Load => FLAG_READ_ONLY,
        Command::Table => FLAG_STATUS_TABLE,
        Command::Create | Command::Remove | Command::Resume => 0,
    };
    for (at, value) in [(0, 4), (12, REQUEST_BYTES as u32), (16, HEADER as u32), (28, flags)] {
        put(&mut bytes, at, &u32::to_le_bytes(value));
    }
    put(&mut bytes, 48, &name.as_bytes()[..name.len().min(127)]);
    if let Some(table) = table {
        let text = table.text();
        put(&mut bytes, 20, &1u32.to_le_bytes());
        put(&mut bytes, HEADER + 8, &table.sectors().to_le_bytes());
        put(&mut bytes, HEADER + 24, b"verity");
        put(
            &mut bytes,
            HEADER + TARGET,
            &text.as_bytes()[..text.len().min(REQUEST_BYTES - HEADER - TARGET - 1)],
        );
    }
    bytes
}

/// The number of the device in an answer: `/dev/dm-<minor>`.
pub fn minor(answer: &[u8]) -> Option<u32> {
    let mut dev = [0u8; 8];
    dev.copy_from_slice(answer.get(40..48)?);
    let dev = u64::from_le_bytes(dev);
    u32::try_from((dev & 0xff) | ((dev >> 12) & 0xfff_ff00)).ok()
}

/// The verity table in an answer to [`Command::Table`]; `None` if the device has another kind of table.
pub fn table(answer: &[u8]) -> Option<VerityTable> {
    let mut start = [0u8; 4];
    start.copy_from_slice(answer.get(16..20)?);
    let start = u32::from_le_bytes(start) as usize;
    let target = answer.get(start..)?;
    let kind = until_nul(target.get(24..TARGET)?)?;
    (kind == "verity").then(|| until_nul(target.get(TARGET..)?)).flatten().and_then(VerityTable::parse)
}

fn until_nul(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes.split(|b| *b == 0).next()?).ok()
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample(restart: bool) -> VerityTable {
        VerityTable {
            data: "/dev/vda2".into(),
            hash: "/dev/vda3".into(),
            parameters: Parameters { data_blocks: 1000, salt: [2; 32] },
            roothash: Digest([1; 32]),
            restart,
        }
    }

    #[test]
    fn a_loaded_table_reads_back() {
        for restart in [false, true] {
            let bytes = request(Command::Load, ROOT_NAME, Some(&sample(restart)));
            assert_eq!(table(&bytes), Some(sample(restart)));
            assert_eq!(bytes[HEADER + 8..HEADER + 16], 8000u64.to_le_bytes());
        }
    }

    #[test]
    fn tables_of_another_shape_are_refused() {
        let good = sample(false).text();
        for bad in [
            String::new(),
            good.replacen("1 ", "0 ", 1),
            good.replace("sha256", "sha1"),
            good.replace("4096 4096", "4096 512"),
            format!("{good} 1 ignore_corruption"),
            format!("{good} 2 restart_on_corruption ignore_zero_blocks"),
        ] {
            assert_eq!(VerityTable::parse(&bad), None, "{bad}");
        }
    }

    #[test]
    fn request_numbers_are_those_of_the_kernel() {
        // `_IOWR(0xfd, 3, struct dm_ioctl)` as strace prints it for DM_DEV_CREATE.
        assert_eq!(Command::Create.request(), 0xc138_fd03);
        assert_eq!(minor(&request(Command::Create, "x", None)), Some(0));
    }

    proptest! {
        #[test]
        fn no_answer_makes_the_reader_panic(bytes: Vec<u8>) {
            table(&bytes);
            minor(&bytes);
        }
    }
}
