//! The part of the kernel command line that Farhold's init acts on. It stands in the UKI and is signed with it.
//!
//! A word that appears twice is refused: with two `roothash=` it would be unclear which one was meant.

use crate::hex::{self, Digest};
use crate::verity::{Parameters, SALT_BYTES};

/// What the init needs to open the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootArgs {
    /// Root of the dm-verity tree.
    pub roothash: Digest,
    /// Salt and block count, so that nothing unsigned on disk decides them.
    pub verity: Parameters,
    /// Release version.
    pub version: String,
    /// Seconds until the hardware watchdog resets the machine; `None` leaves it alone.
    pub watchdog_s: Option<u32>,
}

/// Why a command line was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BootArgsError {
    /// A needed word is not there.
    #[error("kernel command line has no `{0}=`")]
    Missing(&'static str),
    /// A word is there more than once.
    #[error("kernel command line has `{0}=` more than once")]
    Twice(&'static str),
    /// A word's value cannot be read.
    #[error("kernel command line: `{0}={1}` cannot be read")]
    Value(&'static str, String),
}

const ROOTHASH: &str = "roothash";
const SALT: &str = "farhold.salt";
const BLOCKS: &str = "farhold.blocks";
const VERSION: &str = "farhold.version";
const WATCHDOG: &str = "farhold.watchdog";

impl BootArgs {
    /// The words in a fixed order, joined by blanks.
    pub fn encode(&self) -> String {
        let mut line = format!(
            "{ROOTHASH}={} {SALT}={} {BLOCKS}={} {VERSION}={}",
            self.roothash,
            hex::encode(&self.verity.salt),
            self.verity.data_blocks,
            self.version
        );
        if let Some(seconds) = self.watchdog_s {
            line.push_str(&format!(" {WATCHDOG}={seconds}"));
        }
        line
    }

    /// Finds the words in a whole kernel command line.
    ///
    /// # Errors
    /// [`BootArgsError`] if one is missing, doubled or malformed.
    pub fn parse(line: &str) -> Result<Self, BootArgsError> {
        let needed = |key| word(line, key)?.ok_or(BootArgsError::Missing(key));
        let bad = |key, value: &str| BootArgsError::Value(key, value.to_owned());
        let roothash = needed(ROOTHASH)?;
        let salt = needed(SALT)?;
        let blocks = needed(BLOCKS)?;
        let watchdog_s = word(line, WATCHDOG)?
            .map(|v| v.parse().ok().filter(|s| (1..=86_400).contains(s)).ok_or_else(|| bad(WATCHDOG, v)))
            .transpose()?;
        Ok(Self {
            roothash: Digest::parse(roothash).ok_or_else(|| bad(ROOTHASH, roothash))?,
            verity: Parameters {
                salt: hex::decode::<SALT_BYTES>(salt).ok_or_else(|| bad(SALT, salt))?,
                data_blocks: blocks
                    .parse()
                    .ok()
                    .filter(|n| (1..=1u64 << 40).contains(n))
                    .ok_or_else(|| bad(BLOCKS, blocks))?,
            },
            version: needed(VERSION)?.to_owned(),
            watchdog_s,
        })
    }
}

fn word<'a>(line: &'a str, key: &'static str) -> Result<Option<&'a str>, BootArgsError> {
    let mut found = line
        .split_ascii_whitespace()
        .filter_map(|w| w.split_once('='))
        .filter(|(k, _)| *k == key)
        .map(|(_, v)| v);
    match (found.next(), found.next()) {
        (value, None) => Ok(value),
        (_, Some(_)) => Err(BootArgsError::Twice(key)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> BootArgs {
        BootArgs {
            roothash: Digest([1; 32]),
            verity: Parameters { data_blocks: 1000, salt: [2; 32] },
            version: "1.0.0".into(),
            watchdog_s: Some(300),
        }
    }

    #[test]
    fn round_trips_among_other_words() {
        let line = format!("quiet {} console=ttyS0 ro", sample().encode());
        assert_eq!(BootArgs::parse(&line), Ok(sample()));
    }

    #[test]
    fn doubled_roothash_is_refused() {
        let line = format!("{} roothash={}", sample().encode(), Digest([3; 32]));
        assert_eq!(BootArgs::parse(&line), Err(BootArgsError::Twice("roothash")));
    }

    #[test]
    fn missing_and_malformed_words_are_named() {
        assert_eq!(BootArgs::parse("ro quiet"), Err(BootArgsError::Missing("roothash")));
        let line = sample().encode().replace("farhold.blocks=1000", "farhold.blocks=0");
        assert_eq!(BootArgs::parse(&line), Err(BootArgsError::Value("farhold.blocks", "0".into())));
    }
}
