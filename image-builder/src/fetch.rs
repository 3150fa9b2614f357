//! Brings files with a known SHA-256 into the store: from folders on disk first, then from their addresses, a few at
//! once, going on where a killed or interrupted download stopped.
//!
//! Nothing reaches the store unchecked, and every read has a limit. Knows nothing of packages or images.

mod http;

use crate::lock::{LockedArch, LockedArtefact, LockedPackage, LockedTools};
use crate::progress::{Bar, Progress};
use crate::store::{Store, hash_reader};
use anyhow::{Context, Result, anyhow, bail};
use formats::hex::Digest;
use http::{Client, Source};
use nix::fcntl::{Flock, FlockArg};
use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Downloads at once: enough to hide latency, few enough for a mirror's patience.
const PARALLEL: usize = 4;
/// Most bytes of a file whose length is not known.
pub const MAX_UNKNOWN_BYTES: u64 = 8 << 30;
/// Attempts at one file before its error counts.
const ATTEMPTS: u32 = 3;

/// A file that is wanted in the store.
#[derive(Clone, Debug)]
pub struct Want {
    /// What it is, for messages, as `package systemd 257.13-1 (amd64)`.
    pub what: String,
    /// Where it is published; none for what only a folder can give.
    pub url: Option<String>,
    /// Names under which a folder may hold it.
    pub names: Vec<String>,
    /// Its SHA-256.
    pub digest: Digest,
    /// Its length in bytes, if known.
    pub size: Option<u64>,
}

impl Want {
    /// A package of a mirror.
    ///
    /// # Errors
    /// If the lock does not name its mirror or has a malformed digest.
    pub fn package(package: &LockedPackage, mirrors: &BTreeMap<String, String>) -> Result<Self> {
        let what = format!("package {} {} ({})", package.name, package.version, package.architecture);
        let base = mirrors
            .get(&package.mirror)
            .ok_or_else(|| anyhow!("{what}: the lock names no mirror `{}`; lock again", package.mirror))?;
        let file = crate::tree::name(&package.path);
        let digest = parse_digest(&what, &package.sha256)?;
        // apt and some mirrors keep the epoch in file names: `x_1%3a2_amd64.deb`.
        let epoch =
            format!("{}_{}_{}.deb", package.name, package.version.replace(':', "%3a"), package.architecture);
        let url = Some(format!("{base}/{}", package.path));
        Ok(Self { what, url, names: vec![file.to_owned(), epoch], digest, size: Some(package.size) })
    }

    /// An artefact of the lock.
    ///
    /// # Errors
    /// If the lock has a malformed digest.
    pub fn artefact(name: &str, locked: &LockedArtefact) -> Result<Self> {
        let what = format!("artefact {name}");
        let digest = parse_digest(&what, &locked.sha256)?;
        let mut names = vec![name.to_owned()];
        names.extend(locked.url.as_deref().map(|url| crate::tree::name(url).to_owned()));
        Ok(Self { what, url: locked.url.clone(), names, digest, size: Some(locked.size) })
    }

    /// Everything that one architecture of a lock pins.
    ///
    /// # Errors
    /// As [`Want::package`] and [`Want::artefact`].
    pub fn locked(locked: &LockedArch) -> Result<Vec<Self>> {
        let packages = locked.packages.iter().map(|package| Self::package(package, &locked.mirrors));
        let artefacts = locked.artefacts.iter().map(|(name, artefact)| Self::artefact(name, artefact));
        packages.chain(artefacts).collect()
    }

    /// The packages of a tools root.
    ///
    /// # Errors
    /// As [`Want::package`].
    pub fn tools(tools: &LockedTools) -> Result<Vec<Self>> {
        tools.packages.iter().map(|package| Self::package(package, &tools.mirrors)).collect()
    }

    fn wanted(&self) -> String {
        let size = self.size.map_or(String::new(), |size| format!(", {size} bytes"));
        format!("the lock wants SHA-256 {}{size}", self.digest)
    }
}

fn parse_digest(what: &str, text: &str) -> Result<Digest> {
    Digest::parse(text)
        .ok_or_else(|| anyhow!("{what}: the lock has `{text}` as its SHA-256, must be 64 hexadecimal digits"))
}

/// Brings all of `wants` into the store. `folders` are looked into before any network; with everything in the store
/// nothing else is touched.
///
/// # Errors
/// The first file that cannot be had: what was wanted, what was found, what to do.
pub fn fetch(store: &Store, wants: &[Want], folders: &[PathBuf], progress: &Progress) -> Result<()> {
    let missing: Vec<&Want> = wants.iter().filter(|want| store.get(&want.digest).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let total = missing.iter().filter_map(|want| want.size).sum();
    let fetcher = Fetcher {
        store,
        folders,
        client: Client::new()?,
        bar: progress.bytes(&format!("download {} files", missing.len()), total),
    };
    let (next, stop, failed) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(None));
    std::thread::scope(|scope| {
        for _ in 0..PARALLEL.min(missing.len()) {
            scope.spawn(|| {
                while let Some(want) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if stop.load(Ordering::Relaxed) {
                        return;
                    }
                    if let Err(error) = fetcher.get(want) {
                        stop.store(true, Ordering::Relaxed);
                        if let Ok(mut failed) = failed.lock() {
                            failed.get_or_insert(error);
                        }
                    }
                }
            });
        }
    });
    match failed.into_inner() {
        Ok(None) => Ok(()),
        Ok(Some(error)) => Err(error),
        Err(_) => bail!("a download thread died"),
    }
}

/// Brings a file of unknown digest into the store, to learn its digest and length.
///
/// # Errors
/// If it cannot be had or is longer than [`MAX_UNKNOWN_BYTES`].
pub fn learn(store: &Store, what: &str, url: &str, progress: &Progress) -> Result<(Digest, u64)> {
    let client = Client::new()?;
    let bar = progress.bytes(&format!("download {what}"), 0);
    let mut writer = store.writer()?;
    let source = client.open(url, 0).map_err(|gone| anyhow!("{what}: {}", gone.describe(url)))?;
    http::copy(source, &mut writer, MAX_UNKNOWN_BYTES, &bar)
        .with_context(|| format!("{what}: download {url}"))?;
    let size = writer.size();
    Ok((writer.finish(None)?, size))
}

struct Fetcher<'a> {
    store: &'a Store,
    folders: &'a [PathBuf],
    client: Client,
    bar: Bar,
}

impl Fetcher<'_> {
    fn get(&self, want: &Want) -> Result<()> {
        for folder in self.folders {
            if self.copy_from(want, folder)? {
                return Ok(());
            }
        }
        let Some(url) = &want.url else {
            bail!(
                "{}: it is neither in the cache nor in a folder given with --store, and it is published nowhere; {}",
                want.what,
                want.wanted()
            );
        };
        let path = self.store.partial_path(&want.digest);
        let file = OpenOptions::new().create(true).append(true).read(true).open(&path);
        let file = file.with_context(|| self.store.full())?;
        // Another build may be fetching the same file: wait, and find it in the store.
        let mut file = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, error)| error)
            .with_context(|| format!("lock {}", path.display()))?;
        if self.store.get(&want.digest).is_some() {
            return Ok(());
        }
        let mut attempt = 1;
        loop {
            match self.download(want, url, &mut file) {
                Ok(()) => break,
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Again(error)) if attempt == ATTEMPTS => return Err(error),
                Err(Failure::Again(_)) => attempt += 1,
            }
        }
        let whole = file.try_clone().with_context(|| format!("read {}", path.display()))?;
        match self.store.adopt(whole, &path, &want.digest)? {
            Ok(_) => Ok(()),
            Err(found) => bail!(
                "{}: {url} has SHA-256 {found}; {}. The file was replaced since: check why, then `farhold lock` \
                 makes a new lock",
                want.what,
                want.wanted()
            ),
        }
    }

    /// Copies from a folder; a file of the right name and wrong contents is passed over, it may be another version.
    fn copy_from(&self, want: &Want, folder: &Path) -> Result<bool> {
        for path in want.names.iter().map(|name| folder.join(name)).filter(|path| path.is_file()) {
            let same = || -> Result<bool> {
                if want.size.is_some_and(|size| fs::metadata(&path).map_or(true, |meta| meta.len() != size)) {
                    return Ok(false);
                }
                Ok(hash_reader(&mut File::open(&path)?)?.0 == want.digest)
            };
            if same().with_context(|| format!("read {}", path.display()))? {
                let (_, size) = self.store.put_file(&path)?;
                self.bar.add(size);
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn download(&self, want: &Want, url: &str, file: &mut File) -> Result<(), Failure> {
        let stat = |file: &File| file.metadata().map(|meta| meta.len());
        let io = |error: std::io::Error| Failure::Final(anyhow!(error).context(self.store.full()));
        let mut have = stat(file).map_err(io)?;
        if want.size.is_some_and(|size| have > size) {
            file.set_len(0).map_err(io)?;
            have = 0;
        }
        if want.size == Some(have) {
            return Ok(());
        }
        let source = match self.client.open(url, have) {
            Ok(source) => source,
            Err(gone) => return Err(self.unavailable(want, url, &gone)),
        };
        if !source.resumed {
            file.set_len(0).map_err(io)?;
            have = 0;
        } else {
            self.bar.add(have);
        }
        let limit = want.size.unwrap_or(MAX_UNKNOWN_BYTES) - have;
        let said = |cause: &str| {
            anyhow!("{}: {url} {cause}; {}. `farhold lock` makes a new lock", want.what, want.wanted())
        };
        self.take(source, file, limit, &said)?;
        let got = stat(file).map_err(io)?;
        match want.size {
            Some(size) if got < size => {
                Err(Failure::Again(said(&format!("ended after {got} of {size} bytes (download cut short)"))))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn take(
        &self,
        source: Source,
        file: &mut File,
        limit: u64,
        said: &dyn Fn(&str) -> anyhow::Error,
    ) -> Result<(), Failure> {
        match http::copy(source, file, limit, &self.bar) {
            Ok(()) => Ok(()),
            Err(http::CopyError::TooLong) => {
                file.set_len(0).map_err(|error| Failure::Final(anyhow!(error).context(self.store.full())))?;
                Err(Failure::Final(said("is longer")))
            }
            Err(http::CopyError::Read(error)) => {
                Err(Failure::Again(anyhow!(error).context(said("broke off"))))
            }
            Err(http::CopyError::Write(error)) => {
                Err(Failure::Final(anyhow!(error).context(self.store.full())))
            }
        }
    }

    fn unavailable(&self, want: &Want, url: &str, gone: &http::Unavailable) -> Failure {
        let found = gone.describe(url);
        match gone {
            http::Unavailable::Status(404 | 410) => Failure::Final(anyhow!(
                "{}: {found}; {}. Mirrors drop old versions: `farhold lock` makes a new lock, a snapshot mirror in \
                 the lock keeps it buildable",
                want.what,
                want.wanted()
            )),
            http::Unavailable::Status(_) => {
                Failure::Again(anyhow!("{}: {found}; {}", want.what, want.wanted()))
            }
            http::Unavailable::Unreachable(_) => Failure::Again(anyhow!(
                "{}: {found}, and it is not in the cache. Connect this machine, or give a folder that has the file \
                 with --store DIR",
                want.what
            )),
        }
    }
}

/// Whether another attempt may help.
enum Failure {
    Again(anyhow::Error),
    Final(anyhow::Error),
}

#[cfg(test)]
mod tests;
