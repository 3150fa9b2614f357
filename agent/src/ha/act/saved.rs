//! The durable state of one voter, and the proof that it is the newest.
//!
//! Each change counts up. The count also stands outside the state: in a file that dies with the boot, and, if there is
//! one, in a durable file that no backup of the state holds. It is written after the state and before anything that
//! relies on the change, so a state that is behind a count is old. It does not know what the state means.

use super::identity::Number;
use crate::durable;
use crate::ha::acceptor::Acceptor;
use crate::ha::resume::Start;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

const MAGIC: &[u8; 8] = b"fh-ha-1\n";
/// Longest state that is read, bytes.
const STATE_MAX: u64 = 16 << 10;

/// Bytes that are kept for states of a voter whose disk is full.
const RESERVE: usize = 256 << 10;

/// Files outside the state that count its changes.
#[derive(Clone, Debug)]
pub struct Counters {
    /// Dies with the boot, so it is not flushed: a slow disk must not cost time for it.
    pub boot: PathBuf,
    /// Durable, and in no backup of the state.
    pub kept: Option<PathBuf>,
}

impl Counters {
    /// Whether the state of this sequence is shown to be the newest: something counted, and nothing counted further.
    fn show(&self, sequence: u64) -> bool {
        let counts: Vec<u64> = [Some(&self.boot), self.kept.as_ref()]
            .into_iter()
            .flatten()
            .filter_map(|path| count(path))
            .collect();
        counts.iter().all(|count| sequence >= *count) && !counts.is_empty()
    }

    fn write(&self, sequence: u64) -> Result<()> {
        let text = sequence.to_string();
        durable::replace(&self.boot, text.as_bytes(), 0o600)?;
        self.kept.as_ref().map_or(Ok(()), |kept| durable::write(kept, text.as_bytes(), 0o600))
    }
}

/// One voter's file and its counters.
pub struct Store {
    path: PathBuf,
    counters: Counters,
    sequence: u64,
}

/// A file that is there to be given up: without it a node whose disk is full could not even learn that it lost its role.
fn reserve(path: &Path) -> PathBuf {
    path.with_extension("reserve")
}

/// Makes the reserve of a state, or makes it again once there is space.
///
/// # Errors
/// The file system's.
pub fn keep_reserve(path: &Path) -> Result<()> {
    let path = reserve(path);
    if path.exists() { Ok(()) } else { durable::write(&path, &[0x5a; RESERVE], 0o600) }
}

#[derive(Serialize, Deserialize)]
struct Stored<T> {
    voter: u64,
    sequence: u64,
    value: T,
}

/// What a voter's file held.
pub struct Opened<T> {
    /// The file, for later changes.
    pub store: Store,
    /// The voter's number.
    pub voter: Number,
    /// Its state; nothing before it was told a register.
    pub value: Option<T>,
    /// Whether the state is shown to be the newest.
    pub start: Start,
}

impl Store {
    /// The file again, where only its count was kept.
    pub fn again(path: PathBuf, counters: Counters, sequence: u64) -> Self {
        Self { path, counters, sequence }
    }

    /// How many changes there were.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Makes the file of a new voter, which has no state yet.
    ///
    /// # Errors
    /// If there is one, or it cannot be written.
    pub fn create(path: &Path, counters: Counters) -> Result<Number> {
        if path.exists() {
            bail!("make a voter: {} exists already, and nothing replaces it", path.display());
        }
        let voter = Number::draw()?;
        let mut store = Self { path: path.to_owned(), counters, sequence: 0 };
        store.write(voter, &None::<Acceptor>)?;
        Ok(voter)
    }

    /// Reads a voter's file and compares its count with those outside.
    ///
    /// # Errors
    /// Absent, damaged and unreadable are told apart; none of them is taken for a new voter.
    pub fn open<T: DeserializeOwned>(path: &Path, counters: Counters) -> Result<Opened<T>> {
        let name = path.display();
        let size = std::fs::metadata(path).with_context(|| {
            format!(
                "read the state {name}: a voter whose state is lost is a new voter; make one with `ha init`"
            )
        })?;
        if size.len() > STATE_MAX {
            bail!("read the state {name}: it has {} bytes, at most {STATE_MAX} are read", size.len());
        }
        let bytes = std::fs::read(path).with_context(|| format!("read the state {name}"))?;
        let stored: Stored<Option<T>> = decode(&bytes).with_context(|| {
            format!(
                "read the state {name}: it is damaged; nothing was changed; restore it or make a new voter"
            )
        })?;
        let start = if counters.show(stored.sequence) || stored.value.is_none() {
            Start::Proven
        } else {
            Start::Unproven { life: Number::draw()?.0 }
        };
        let store = Self { path: path.to_owned(), counters, sequence: stored.sequence };
        Ok(Opened { store, voter: Number(stored.voter), value: stored.value, start })
    }

    /// Makes a state durable.
    ///
    /// # Errors
    /// The file system's. The caller must not go on: what it would do relies on the state.
    pub fn write<T: Serialize>(&mut self, voter: Number, value: &Option<T>) -> Result<()> {
        let sequence = self.sequence + 1;
        let body =
            postcard::to_allocvec(&Stored { voter: voter.0, sequence, value }).context("encode the state")?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(&body);
        bytes.extend(Sha256::digest(&body));
        let written = durable::write(&self.path, &bytes, 0o600);
        let full = |error: &anyhow::Error| {
            let cause = error.root_cause().downcast_ref::<std::io::Error>();
            cause.is_some_and(|cause| cause.kind() == std::io::ErrorKind::StorageFull)
        };
        match written {
            Err(error) if full(&error) && std::fs::remove_file(reserve(&self.path)).is_ok() => {
                durable::write(&self.path, &bytes, 0o600)?;
            }
            other => other?,
        }
        self.counters.write(sequence)?;
        self.sequence = sequence;
        Ok(())
    }
}

fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<Stored<T>> {
    let body = bytes.strip_prefix(MAGIC).context("it does not begin like a state")?;
    let (body, digest) = body.split_last_chunk::<32>().context("it is too short")?;
    if Sha256::digest(body).as_slice() != digest {
        bail!("its checksum is wrong");
    }
    postcard::from_bytes(body).context("its content is malformed")
}

fn count(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ha::register::{Platform, Register, VoterId};

    fn acceptor(voter: Number) -> Option<Acceptor> {
        let platform = Platform { postgres_major: 17, machine: 62 };
        Some(Acceptor::new(voter.voter(), 1, Register::first(VoterId(1), 2, platform)))
    }

    #[test]
    fn a_state_from_a_backup_is_not_proven() {
        let folder = tempfile::tempdir().unwrap();
        let counters = |name: &str| Counters { boot: folder.path().join(name), kept: None };
        let (path, counter) = (folder.path().join("voter"), counters("count"));
        let voter = Store::create(&path, counter.clone()).unwrap();
        let mut opened = Store::open::<Acceptor>(&path, counter.clone()).unwrap();
        assert!(opened.value.is_none());
        opened.store.write(voter, &acceptor(voter)).unwrap();
        let backup = std::fs::read(&path).unwrap();
        opened.store.write(voter, &acceptor(voter)).unwrap();
        let again = Store::open::<Acceptor>(&path, counter.clone()).unwrap();
        assert_eq!((again.start, again.voter, again.value), (Start::Proven, voter, acceptor(voter)));

        std::fs::write(&path, &backup).unwrap();
        let old = Store::open::<Acceptor>(&path, counter.clone()).unwrap();
        assert!(matches!(old.start, Start::Unproven { .. }));
        // Either count is enough to show it, whichever was lost with the boot.
        let kept = Counters { boot: folder.path().join("none"), kept: Some(folder.path().join("count")) };
        assert!(matches!(Store::open::<Acceptor>(&path, kept).unwrap().start, Start::Unproven { .. }));
        // Nothing outside shows anything: not proven either.
        let lost = Store::open::<Acceptor>(&path, counters("none")).unwrap();
        assert!(matches!(lost.start, Start::Unproven { .. }));
    }

    #[test]
    fn absent_damaged_and_too_long_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("voter");
        let counters = || Counters { boot: folder.path().join("count"), kept: None };
        let error = |path: &Path| format!("{:#}", Store::open::<Acceptor>(path, counters()).err().unwrap());
        assert!(error(&path).contains("whose state is lost is a new voter"));
        Store::create(&path, counters()).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[12] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        assert!(error(&path).contains("its checksum is wrong"));
        std::fs::write(&path, vec![0; 20_000]).unwrap();
        assert!(error(&path).contains("at most 16384 are read"));
    }
}
