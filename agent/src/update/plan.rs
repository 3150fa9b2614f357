//! What a release takes on this device: the objects that make slot and UKI, in the order in which they are tried, and
//! where they are kept meanwhile. Pure: manifest and facts in, plan or reason out.

use crate::update::staging;
use formats::catalogue::{self, Catalogue};
use formats::hex::Digest;
use formats::loader;
use formats::manifest::{Manifest, ObjectRef, PayloadKind, Source, Target, TargetKind};
use formats::object::{BlockSize, Geometry};
use formats::verity::Parameters;
use serde::{Deserialize, Serialize};

/// Of the free room on `/var`, this much is left for everything else, bytes.
const VAR_RESERVE: u64 = 32 << 20;
/// FAT and folders of the ESP need room beside the files, bytes.
const ESP_RESERVE: u64 = 64 << 10;

/// An object with its geometry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its id.
    pub id: Digest,
    /// Its length in bytes.
    pub bytes: u64,
    /// Binary logarithm of its block size.
    pub block_log2: u8,
}

impl Object {
    /// Its geometry.
    ///
    /// # Errors
    /// Words, if no object may have it.
    pub fn geometry(&self) -> Result<Geometry, String> {
        let block = BlockSize::from_log2(self.block_log2).ok_or("block size is out of range")?;
        Geometry::new(self.bytes, block).map_err(|error| error.to_string())
    }
}

impl From<&ObjectRef> for Object {
    fn from(object: &ObjectRef) -> Self {
        let geometry = object.geometry;
        Self { id: object.id, bytes: geometry.length(), block_log2: geometry.block().log2() }
    }
}

/// How a target comes out of an object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "method", rename_all = "kebab-case")]
pub enum Method {
    /// The object is the target.
    Plain,
    /// One zstd frame.
    Zstd {
        /// Binary logarithm of its window.
        window_log: u8,
    },
    /// A delta against what runs: the slot's image for an image, the UKI for a UKI.
    Delta {
        /// Bytes of that base.
        base_bytes: u64,
    },
    /// Packed units, of which those are fetched that the running slot does not have.
    Adaptive {
        /// Bytes of the index before them.
        index_bytes: u64,
        /// Most bytes that it may take: what the way after it takes.
        most: u64,
    },
}

/// A way to a target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// What is fetched.
    pub object: Object,
    /// How the target comes out of it.
    pub method: Method,
}

/// A target with the ways to it, cheapest first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    /// What must come out.
    pub target: Object,
    /// How to get it.
    pub ways: Vec<Way>,
}

/// Where fetched objects are kept until they are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// On the state partition: the other slot stays as it is meanwhile.
    State,
    /// At the end of the other slot's root partition, which is retired first: nothing to go back to meanwhile.
    Slot,
}

/// All that it takes to install a release.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// Version.
    pub version: String,
    /// Roothash.
    pub roothash: Digest,
    /// Object id of the manifest.
    pub manifest: Digest,
    /// Salt of the hash tree, hexadecimal.
    pub salt: String,
    /// UUID in its superblock, hexadecimal.
    pub uuid: String,
    /// The slot image.
    pub slot: Made,
    /// The unified kernel image.
    pub uki: Made,
    /// Where objects are kept.
    pub place: Place,
    /// The room that there was for them.
    #[serde(default)]
    pub keep: Keep,
}

/// Room for what is fetched, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keep {
    /// Free on `/var`.
    pub var: u64,
    /// In the other slot's root partition, behind the image.
    pub spare: u64,
}

impl Plan {
    /// Block count and salt of the slot image.
    ///
    /// # Errors
    /// Words, if the salt is damaged.
    pub fn verity(&self) -> Result<Parameters, String> {
        let salt = formats::hex::decode(&self.salt).ok_or("the plan's salt is damaged")?;
        Ok(Parameters { data_blocks: self.slot.target.bytes / formats::verity::BLOCK as u64, salt })
    }

    /// As the release that it makes.
    pub fn release(&self) -> crate::update::state::Release {
        crate::update::state::Release {
            version: self.version.clone(),
            roothash: self.roothash,
            manifest: Some(self.manifest),
        }
    }

    /// Bytes that are fetched if the first ways do.
    pub fn fetch_bytes(&self) -> u64 {
        let first = |made: &Made| made.ways.first().map_or(0, |way| way.object.bytes);
        first(&self.slot) + first(&self.uki)
    }
}

/// Room that the device has, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Root partition of the other slot.
    pub root: u64,
    /// Verity partition of the other slot.
    pub verity: u64,
    /// Free on the ESP once entries that are not the running release's are gone.
    pub esp: u64,
    /// Free on `/var`.
    pub var: u64,
    /// Object id of the running UKI.
    pub uki: Option<Digest>,
    /// Object id of the boot loader on the ESP.
    pub boot_loader: Option<Digest>,
}

/// The release that runs, and what it is compared with.
#[derive(Clone, Copy, Debug)]
pub struct Running<'r> {
    /// Its version.
    pub version: &'r str,
    /// Its roothash.
    pub roothash: Digest,
}

/// What a source offers, once it was verified.
#[derive(Clone, Copy, Debug)]
pub struct Offer<'o> {
    /// The manifest.
    pub manifest: &'o Manifest,
    /// Its object id.
    pub id: Digest,
    /// Further payloads, if there are any.
    pub catalogue: Option<&'o Catalogue>,
}

/// Makes a plan, or says why there is none.
///
/// # Errors
/// The reason in words: what the release lacks, or what the device lacks.
pub fn make(offer: &Offer<'_>, running: Running<'_>, room: &Room) -> Result<Plan, String> {
    let manifest = offer.manifest;
    let (slot_at, slot) = position(manifest, |kind| matches!(kind, TargetKind::Slot { .. }))
        .ok_or("the release has no slot image")?;
    let (uki_at, uki) =
        position(manifest, |kind| matches!(kind, TargetKind::Uki)).ok_or("the release has no UKI")?;
    let TargetKind::Slot { roothash, salt, uuid } = &slot.kind else {
        return Err("the release has no slot image".into());
    };
    let bases = Bases { slot: running.roothash, uki: room.uki };
    check_order(&manifest.version, *roothash, running)?;
    check_room(manifest, room)?;
    let mut plan = Plan {
        version: manifest.version.clone(),
        roothash: *roothash,
        manifest: offer.id,
        salt: formats::hex::encode(salt),
        uuid: formats::hex::encode(uuid),
        slot: Made { target: Object::from(&slot.object), ways: ways(offer, slot_at, &bases) },
        uki: Made { target: Object::from(&uki.object), ways: ways(offer, uki_at, &bases) },
        place: Place::State,
        keep: Keep { var: room.var, spare: room.root.saturating_sub(slot.object.geometry.length()) },
    };
    loop {
        let first = [&plan.slot, &plan.uki].map(|made| made.ways.first());
        match place(first.into_iter().flatten(), plan.keep) {
            Ok(found) => plan.place = found,
            // Another way to the image may take less room, if more bytes.
            Err(_) if plan.slot.ways.len() > 1 => {
                plan.slot.ways.remove(0);
                continue;
            }
            Err(why) => return Err(why),
        }
        return Ok(plan);
    }
}

/// Object id of the boot loader of a release that firmware would start without a variable, if it is another than this
/// device's. It is never replaced (`docs/decisions/0024-boot-loader-is-never-replaced.md`).
pub fn other_boot_loader(manifest: &Manifest, here: Option<Digest>) -> Option<Digest> {
    let targets =
        (0..u16::MAX).map_while(|at| (usize::from(at) < manifest.targets.len()).then(|| manifest.target(at)));
    let loader = targets.flatten().find(|target| match &target.kind {
        TargetKind::BootFile { path } => path.to_ascii_uppercase().starts_with("EFI/BOOT/"),
        TargetKind::Slot { .. } | TargetKind::Uki | TargetKind::Content { .. } => false,
    });
    loader.map(|target| target.object.id).filter(|id| here.is_some_and(|here| here != *id))
}

fn position(manifest: &Manifest, wanted: impl Fn(&TargetKind) -> bool) -> Option<(u16, &Target)> {
    let positions = 0..u16::try_from(manifest.targets.len()).unwrap_or(u16::MAX);
    let mut known = positions.filter_map(|at| Some((at, manifest.target(at)?)));
    known.find(|(_, target)| wanted(&target.kind))
}

/// What deltas can begin from.
struct Bases {
    slot: Digest,
    uki: Option<Digest>,
}

fn ways(offer: &Offer<'_>, at: u16, bases: &Bases) -> Vec<Way> {
    let uki = offer.manifest.target(at).is_some_and(|target| target.kind == TargetKind::Uki);
    let has = |source: &Source| match source {
        Source::Slot { roothash, .. } => !uki && *roothash == bases.slot,
        Source::Object(object) => uki && Some(object.id) == bases.uki,
    };
    let found = catalogue::ways(offer.manifest, offer.catalogue, at, &has);
    let certain = found.iter().filter(|way| way.payload.is_none_or(|payload| payload.kind.needs_no_base()));
    let most = certain.map(|way| way.fetch_bytes).min().unwrap_or(0);
    let method = |way: &catalogue::Way<'_>| match way.payload.map(|payload| &payload.kind) {
        None => Some(Method::Plain),
        Some(PayloadKind::Full { window_log }) => Some(Method::Zstd { window_log: *window_log }),
        Some(PayloadKind::Delta { base, .. }) => match base.as_slice() {
            [Source::Slot { bytes, .. }] => Some(Method::Delta { base_bytes: *bytes }),
            [Source::Object(object)] => Some(Method::Delta { base_bytes: object.geometry.length() }),
            [..] => None,
        },
        Some(PayloadKind::Adaptive { .. }) if uki => None,
        Some(PayloadKind::Adaptive { index_bytes }) => {
            Some(Method::Adaptive { index_bytes: *index_bytes, most })
        }
    };
    let ways =
        found.iter().filter_map(|way| Some(Way { object: Object::from(&way.object), method: method(way)? }));
    ways.collect()
}

/// systemd-boot starts the newest version, so an entry that does not come first would never be tried.
fn check_order(version: &str, roothash: Digest, running: Running<'_>) -> Result<(), String> {
    let entry =
        |version: &str, roothash: Digest| formats::entry::EntryName::uncounted(version, &roothash.short());
    let (new, old) = (entry(version, roothash), entry(running.version, running.roothash));
    if formats::entry::EntryName::parse(&new.file_name()).is_none() {
        return Err(format!("version `{version}` cannot stand in the name of a boot entry"));
    }
    if loader::compare(&new, &old).is_lt() {
        return Ok(());
    }
    Err(format!(
        "version {version} does not come after the running {} in the boot menu's order, so it would never be \
         started: publish it under a higher version",
        running.version
    ))
}

fn check_room(manifest: &Manifest, room: &Room) -> Result<(), String> {
    let needs = manifest.needs;
    let rows = [
        ("the other slot's root partition", needs.slot_bytes, room.root),
        ("the other slot's verity partition", needs.verity_bytes, room.verity),
        ("the ESP", needs.esp_bytes.saturating_add(ESP_RESERVE), room.esp),
    ];
    for (what, needed, has) in rows {
        if has < needed {
            return Err(format!(
                "the release needs {} KiB on {what}, which has {}: nothing was downloaded",
                needed >> 10,
                has >> 10
            ));
        }
    }
    Ok(())
}

/// Where the objects of these ways can be kept.
///
/// # Errors
/// Words, if nowhere.
pub fn place<'w>(ways: impl Iterator<Item = &'w Way>, keep: Keep) -> Result<Place, String> {
    let mut needed = 0u64;
    for way in ways {
        needed = needed.saturating_add(staging::bytes(&way.object.geometry()?));
    }
    if keep.var >= needed.saturating_add(VAR_RESERVE) {
        return Ok(Place::State);
    }
    if keep.spare >= needed {
        return Ok(Place::Slot);
    }
    Err(format!(
        "the release needs {} KiB to keep what it fetches: /var has {} free and the other slot {} to spare; nothing \
         was downloaded",
        needed >> 10,
        keep.var >> 10,
        keep.spare >> 10
    ))
}
