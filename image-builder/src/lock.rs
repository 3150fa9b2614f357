//! The lock: every package, tool and artefact of a build by version and SHA-256, and every user and group id.
//!
//! Plain values, read and written; who resolves, downloads or builds is elsewhere.

use anyhow::{Context, Result, bail};
use formats::arch::Arch;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

/// Format of [`Lock`].
pub const LOCK_FORMAT: u32 = 1;
/// Most bytes of a lock file: one of a thousand packages has under 1 MB.
const MAX_LOCK_BYTES: u64 = 16 << 20;

/// A lock file, JSON.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// [`LOCK_FORMAT`].
    pub format: u32,
    /// Profile name it was made for.
    pub profile: String,
    /// What is pinned, by architecture.
    pub arch: BTreeMap<Arch, LockedArch>,
    /// Packages of the tools root, by the architecture of the machine that builds.
    pub tools: BTreeMap<Arch, LockedTools>,
}

impl Lock {
    /// Reads a lock file.
    ///
    /// # Errors
    /// If it is absent, unreadable, malformed, or of another format; each says what to do.
    pub fn read(path: &Path) -> Result<Self> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                bail!("there is no lock {}: `farhold lock` makes it", path.display())
            }
            Err(error) => return Err(error).with_context(|| format!("open lock {}", path.display())),
        };
        let mut bytes = Vec::new();
        let read = file.take(MAX_LOCK_BYTES + 1).read_to_end(&mut bytes);
        read.with_context(|| format!("read lock {}", path.display()))?;
        if bytes.len() as u64 > MAX_LOCK_BYTES {
            bail!("lock {} has more than {MAX_LOCK_BYTES} bytes: it is none", path.display());
        }
        Self::parse(&bytes).with_context(|| format!("read lock {}", path.display()))
    }

    fn parse(bytes: &[u8]) -> Result<Self> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        // The format first: another one's fields would be a confusing error.
        let head: Head =
            serde_json::from_slice(bytes).context("it is damaged; `farhold lock` makes a new one")?;
        if head.format != LOCK_FORMAT {
            bail!(
                "its format is {}, this farhold reads {LOCK_FORMAT}; `farhold lock` makes a new one",
                head.format
            );
        }
        serde_json::from_slice(bytes).context("it is damaged; `farhold lock` makes a new one")
    }

    /// Writes a lock file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let what = || format!("write lock {}", path.display());
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut text = serde_json::to_vec_pretty(self).with_context(what)?;
        text.push(b'\n');
        let mut file =
            tempfile::Builder::new().permissions(readable()).tempfile_in(folder).with_context(what)?;
        file.write_all(&text).and_then(|()| file.as_file().sync_all()).with_context(what)?;
        file.persist(path).map(drop).with_context(what)
    }
}

/// A lock is no secret.
fn readable() -> std::fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(0o644)
}

/// The pinned tools root of one kind of build machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedTools {
    /// Mirror base address by role.
    pub mirrors: BTreeMap<String, String>,
    /// The whole package set, sorted by name and architecture.
    pub packages: Vec<LockedPackage>,
}

/// What is pinned for one architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedArch {
    /// Board it was made for.
    pub board: String,
    /// Names of the packages asked for; a lock made for others is stale.
    pub requested: Vec<String>,
    /// Mirror base address by role (`archive`, `security`) as used; a snapshot mirror may stand here.
    pub mirrors: BTreeMap<String, String>,
    /// The whole package set, sorted by name.
    pub packages: Vec<LockedPackage>,
    /// Artefacts by name.
    pub artefacts: BTreeMap<String, LockedArtefact>,
    /// Ids of users by name.
    pub uids: BTreeMap<String, u32>,
    /// Ids of groups by name.
    pub gids: BTreeMap<String, u32>,
}

/// One pinned package.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedPackage {
    /// Name.
    pub name: String,
    /// Version.
    pub version: String,
    /// `amd64`, `arm64` or `all`.
    pub architecture: String,
    /// Source package and version, for the SBOM, if it differs from the binary's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Role of the mirror (key of `mirrors`).
    pub mirror: String,
    /// Path below the mirror, as `pool/main/…`.
    pub path: String,
    /// Length in bytes.
    pub size: u64,
    /// SHA-256, hexadecimal.
    pub sha256: String,
}

/// One pinned artefact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LockedArtefact {
    /// Where it is published, if anywhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// SHA-256, hexadecimal.
    pub sha256: String,
    /// Length in bytes.
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        std::fs::write(&path, text).unwrap();
        let error = format!("{:#}", Lock::read(&path).unwrap_err());
        error.replace(&path.display().to_string(), "x.lock")
    }

    #[test]
    fn absent_damaged_and_foreign_are_three_errors() {
        let absent = format!("{:#}", Lock::read(Path::new("/nowhere/x.lock")).unwrap_err());
        assert_eq!(absent, "there is no lock /nowhere/x.lock: `farhold lock` makes it");
        assert!(
            error("{").starts_with("read lock x.lock: it is damaged; `farhold lock` makes a new one: EOF")
        );
        assert_eq!(
            error("{\"format\": 9, \"new\": 1}"),
            "read lock x.lock: its format is 9, this farhold reads 1; `farhold lock` makes a new one"
        );
        assert!(error("{\"format\": 1}").contains("missing field `profile`"));
    }

    #[test]
    fn a_lock_reads_back_and_replaces_the_one_before() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.lock");
        let mut lock =
            Lock { format: LOCK_FORMAT, profile: "p".into(), arch: BTreeMap::new(), tools: BTreeMap::new() };
        lock.write(&path).unwrap();
        lock.profile = "q".into();
        lock.write(&path).unwrap();
        assert_eq!(Lock::read(&path).unwrap(), lock);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
