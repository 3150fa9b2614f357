//! Whether a machine boots from a state of its ESP, by itself and with nobody there.
//!
//! The firmware must find systemd-boot whole; the entry that systemd-boot takes must be a whole UKI whose slot is
//! complete; and should that be a counted trial that fails, the same must hold for each next one down to an entry that
//! is not counted. Where an entry that comes first cannot be loaded, systemd-boot gives up: it does not try the next.

use crate::power_cut::fat::{Chain, Damage, Fat, Found};
use crate::power_cut::loader::Entry;
use crate::power_cut::trace::{Kind, Loaders, Trace, Uki};
use crate::power_cut::volume::{Content, Contents, SECTOR, Volume, ZERO};
use formats::entry::FOLDER;
use std::collections::BTreeSet;

/// Where the two copies of systemd-boot stand; the firmware finds the first by itself.
pub const LOADERS: [&str; 2] = ["EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi"];
/// Settings of systemd-boot.
pub const SETTINGS: &str = "loader/loader.conf";
/// A version that sorts before any: of an entry whose os-release cannot be known the worst is assumed.
const UNKNOWN: &str = "999999999";

/// A file of the trace with its sectors spread out.
struct File {
    bytes: u64,
    kind: Kind,
    contents: Vec<Content>,
}

/// Judges the states of one trace.
pub struct Judge {
    files: Vec<File>,
    contents: Contents,
}

/// What is true during a transition.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'s> {
    /// First digits of the roothashes whose slots are complete.
    pub complete: &'s [String],
    /// Copies of systemd-boot that must be whole.
    pub loaders: Loaders,
}

/// What is said of a state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why no machine boots from it; `None` if one does.
    pub unbootable: Option<String>,
    /// File name of the entry that is started.
    pub chosen: String,
    /// Files that share clusters: removing one of them later destroys the other.
    pub shared: Vec<String>,
    /// Entries that are listed but not whole; one that comes first is in `unbootable` too.
    pub broken: Vec<String>,
    /// Entries under short names, because their long names are torn: their counters are lost.
    pub torn: Vec<String>,
}

/// An entry that systemd-boot lists.
struct Listed {
    entry: Entry,
    name: String,
    /// First digits of the roothash that it opens, or what is wrong with it.
    opens: Result<String, String>,
}

impl Judge {
    /// A judge of the states of this trace.
    ///
    /// # Errors
    /// If the trace is damaged.
    pub fn new(trace: &Trace) -> anyhow::Result<Self> {
        let file = |source: &crate::power_cut::trace::Source| File {
            bytes: source.bytes,
            kind: source.kind.clone(),
            contents: source.contents(),
        };
        Ok(Self { files: trace.sources.iter().map(file).collect(), contents: trace.contents()? })
    }

    /// The bytes behind the numbers.
    pub fn contents(&self) -> &Contents {
        &self.contents
    }

    /// Judges a state.
    pub fn judge(&self, volume: &Volume, facts: Facts<'_>) -> Verdict {
        let mut verdict = Verdict::default();
        match self.examine(volume, facts, &mut verdict) {
            Ok(()) => {}
            Err(why) => verdict.unbootable = Some(why),
        }
        verdict
    }

    fn examine(&self, volume: &Volume, facts: Facts<'_>, verdict: &mut Verdict) -> Result<(), String> {
        let fat = Fat::open(volume, &self.contents).ok_or("the boot sector is damaged")?;
        self.loaders(&fat, volume, facts.loaders)?;
        let names = fat.folder(FOLDER).map_err(|damage| format!("{FOLDER}: {damage}"))?;
        let mut listed: Vec<Listed> =
            names.iter().filter_map(|name| self.listed(&fat, volume, name)).collect();
        listed.sort_by(|a, b| a.entry.order(&b.entry));
        verdict.torn = names.iter().filter(|name| name.torn).map(|name| name.name.clone()).collect();
        verdict.broken = listed.iter().filter(|l| l.opens.is_err()).map(|l| l.name.clone()).collect();
        verdict.shared = shared(&fat);
        verdict.chosen = listed.first().ok_or("no entry is left")?.name.clone();
        for Listed { entry, name, opens } in &listed {
            let roothash8 = opens.as_ref().map_err(|why| format!("{name} comes first, but {why}"))?;
            if !facts.complete.contains(roothash8) {
                return Err(format!("{name} comes first, but no slot holds its image"));
            }
            match entry.left {
                None => return Ok(()),
                Some(0) => break,
                Some(1..) => {}
            }
        }
        Err("no entry without counters is left to go back to".to_owned())
    }

    fn loaders(&self, fat: &Fat<'_>, volume: &Volume, loaders: Loaders) -> Result<(), String> {
        let whole = |path: &str, kind: &Kind| -> Result<(), String> {
            let say = |damage: Damage| format!("{path}: {damage}");
            let found = fat.file(path).map_err(say)?;
            let chain = fat.chain(found.first);
            let held = sectors(fat, volume, &chain, found.bytes.into());
            let mut same = self.files.iter().filter(|file| &file.kind == kind && chain.ends);
            let is = same.any(|file| file.bytes == u64::from(found.bytes) && held == file.contents);
            if is { Ok(()) } else { Err(format!("{path} is not whole")) }
        };
        whole(SETTINGS, &Kind::Settings)?;
        let copies = LOADERS.map(|path| whole(path, &Kind::Loader));
        match (loaders, copies) {
            (_, [Ok(()), Ok(())]) => Ok(()),
            (Loaders::One, [Ok(()), Err(_)] | [Err(_), Ok(())]) => Ok(()),
            (Loaders::Both | Loaders::One, [Err(why), _] | [Ok(()), Err(why)]) => Err(why),
        }
    }

    /// `None` if systemd-boot passes the file over without a word.
    fn listed(&self, fat: &Fat<'_>, volume: &Volume, found: &Found) -> Option<Listed> {
        if found.folder {
            return None;
        }
        let chain = fat.chain(found.first);
        let held = sectors(fat, volume, &chain, found.bytes.into());
        if held.first().is_none_or(|first| *first == ZERO) {
            return None;
        }
        let (uki, contents, length) = self.named_by(&held)?;
        let listed = |version, opens| {
            let entry = Entry::named(&found.name, version)?;
            Some(Listed { entry, name: found.name.clone(), opens })
        };
        let [start, bytes] = uki.os_release;
        let range = (start / SECTOR as u64) as usize..(start + bytes).div_ceil(SECTOR as u64) as usize;
        // What cannot be read to the end of the os-release is no entry.
        let os_release = held.get(range.clone())?;
        if contents.get(range) != Some(os_release) {
            return listed(UNKNOWN, Err("its os-release is not its own".to_owned()));
        }
        let opens = if !chain.ends {
            Err(Damage::Chain { readable: chain.clusters.len() }.to_string())
        } else if length == u64::from(found.bytes) && held == contents {
            Ok(uki.roothash8.clone())
        } else {
            Err(format!("its {} bytes are not those of one UKI", found.bytes))
        };
        listed(&uki.version, opens)
    }

    /// The UKI whose headers these sectors begin with, of several the one whose os-release stands there too.
    fn named_by(&self, held: &[Content]) -> Option<(&Uki, &[Content], u64)> {
        let mut first = None;
        for file in &self.files {
            let Kind::Uki(uki) = &file.kind else { continue };
            let headers = ..uki.headers.div_ceil(SECTOR as u64) as usize;
            if held.get(headers).is_none() || held.get(headers) != file.contents.get(headers) {
                continue;
            }
            let found = (uki, file.contents.as_slice(), file.bytes);
            let at = (uki.os_release[0] / SECTOR as u64) as usize;
            if held.get(at) == file.contents.get(at) {
                return Some(found);
            }
            first = first.or(Some(found));
        }
        first
    }
}

/// The contents of a file's sectors, as far as its chain goes.
fn sectors(fat: &Fat<'_>, volume: &Volume, chain: &Chain, bytes: u64) -> Vec<Content> {
    let wanted = bytes.div_ceil(SECTOR as u64) as usize;
    let size = fat.geometry.cluster;
    let mut out = Vec::with_capacity(wanted);
    for cluster in &chain.clusters {
        out.extend_from_slice(volume.range(fat.geometry.sector(*cluster), size).unwrap_or_default());
        if out.len() >= wanted {
            break;
        }
    }
    out.truncate(wanted);
    out
}

/// Paths of files anywhere on the volume that have a cluster in common.
fn shared(fat: &Fat<'_>) -> Vec<String> {
    let mut owners: Vec<u8> = vec![0; fat.geometry.clusters as usize + 2];
    let mut common = BTreeSet::new();
    let files = fat.files();
    for ((_, file), number) in files.iter().zip(1u8..) {
        for cluster in fat.chain(file.first).clusters {
            let Some(owner) = owners.get_mut(cluster as usize) else { continue };
            match *owner {
                0 => *owner = number,
                other if other != number => common.extend([other, number]),
                _ => {}
            }
        }
    }
    common
        .iter()
        .filter_map(|number| files.get(usize::from(*number) - 1))
        .map(|(path, _)| path.clone())
        .collect()
}
