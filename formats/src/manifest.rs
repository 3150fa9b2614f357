//! The manifest: what a release consists of, and how its parts can be had. Canonical CBOR, byte by byte in
//! `docs/formats.md`, "Manifest". Its object id stands in the announcement frame, so it needs no signature of its own.
//!
//! A *target* is what the device will hold; its object may always be carried as it is. A *payload* is another object
//! from which the device can make a target. Knows no carriers, partitions or files.

use crate::arch::Arch;
use crate::document::{self, DocumentError, Ignored, MapWriter, Reader, need, value};
use crate::frame::MAX_MANIFEST_BYTES;
use crate::hex::Digest;
use crate::object::BlockSize;
use crate::payload::{self, ObjectFields, write_entries, write_object};
use crate::verity;

pub use crate::payload::{Entry, MAX_PAYLOADS, ObjectRef, Payload, PayloadKind, Source};

/// Block size of a manifest's own object: a few satellite messages each.
pub const MANIFEST_BLOCK: BlockSize = BlockSize::KIB_1;
/// Most targets of a release.
pub const MAX_TARGETS: usize = 256;
const FORMAT: u64 = 1;
const MANIFEST: &str = "manifest";
const NEEDS: &str = "manifest's needs";
const TARGET: &str = "target of the manifest";

/// What a release consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Product.
    pub product: String,
    /// Board.
    pub board: String,
    /// Processor.
    pub arch: Arch,
    /// Version of the release.
    pub version: String,
    /// Oldest agent format that can apply it.
    pub min_agent_format: u8,
    /// Time of the sources, seconds since 1970.
    pub built_s: u32,
    /// Room that the device must have, checked before anything is downloaded.
    pub needs: Needs,
    /// What the device will hold.
    pub targets: Vec<Entry<Target>>,
    /// Other ways to a target than carrying it as it is.
    pub payloads: Vec<Entry<Payload>>,
    /// Name of the profile, for people.
    pub profile: Option<String>,
    /// Fields of newer writers that may be ignored.
    pub ignored: Ignored,
}

/// Room that a release needs, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Needs {
    /// Root partition of the inactive slot.
    pub slot_bytes: u64,
    /// Verity partition of the inactive slot.
    pub verity_bytes: u64,
    /// Free on the ESP.
    pub esp_bytes: u64,
}

/// Something that the device will hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Its bytes.
    pub object: ObjectRef,
    /// What it is.
    pub kind: TargetKind,
    /// Fields of newer writers that may be ignored.
    pub ignored: Ignored,
}

/// What a target is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TargetKind {
    /// The root file system of a slot.
    Slot {
        /// Root of its dm-verity tree.
        roothash: Digest,
        /// Salt of the tree.
        salt: [u8; verity::SALT_BYTES],
        /// UUID in the superblock.
        uuid: [u8; 16],
    },
    /// The unified kernel image that opens the slot.
    Uki,
    /// Another file of the ESP, as the boot loader.
    BootFile {
        /// Path from the root of the ESP, with `/`.
        path: String,
    },
    /// Desired state beside the system: Kubernetes images and manifests.
    Content {
        /// Name, unique in the release.
        name: String,
    },
}

const TARGET_SLOT: i64 = 1;
const TARGET_UKI: i64 = 2;
const TARGET_BOOT_FILE: i64 = 3;
const TARGET_CONTENT: i64 = 4;

impl Manifest {
    /// The canonical bytes.
    ///
    /// # Errors
    /// [`DocumentError`] for contents that no manifest may have.
    pub fn encode(&self) -> Result<Vec<u8>, DocumentError> {
        self.check()?;
        let bytes = self.write();
        if bytes.len() > MAX_MANIFEST_BYTES as usize {
            let (is, max) = (bytes.len(), MAX_MANIFEST_BYTES as usize);
            return Err(DocumentError::TooLong { document: MANIFEST, is, max });
        }
        Ok(bytes)
    }

    fn write(&self) -> Vec<u8> {
        let needs = MapWriter::new()
            .uint(0, self.needs.slot_bytes)
            .uint(1, self.needs.verity_bytes)
            .uint(2, self.needs.esp_bytes)
            .finish(&Ignored::default());
        let mut map = MapWriter::new()
            .uint(0, FORMAT)
            .text(1, &self.product)
            .text(2, &self.board)
            .uint(3, arch_number(self.arch))
            .text(4, &self.version)
            .uint(5, self.min_agent_format)
            .uint(6, self.built_s)
            .raw(7, needs)
            .raw(8, write_entries(&self.targets, Target::write))
            .raw(9, write_entries(&self.payloads, Payload::write));
        if let Some(profile) = &self.profile {
            map = map.text(-1, profile);
        }
        map.finish(&self.ignored)
    }

    /// Parses a manifest. The caller has checked its object id: verified before parsed.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let mut reader = Reader::new(MANIFEST, bytes, MAX_MANIFEST_BYTES as usize)?;
        let mut draft = Draft::default();
        let ignored = reader.map(MANIFEST, |reader, key| draft.field(reader, key))?;
        let found = draft.finish(ignored)?;
        found.check()?;
        if found.write() == bytes { Ok(found) } else { Err(DocumentError::NotCanonical(MANIFEST)) }
    }

    /// The slot image, if the release has one, with its verity parameters.
    pub fn slot(&self) -> Option<(&Target, Digest, verity::Parameters)> {
        self.targets.iter().filter_map(Entry::known).find_map(|target| match &target.kind {
            TargetKind::Slot { roothash, salt, .. } => {
                let data_blocks = target.object.geometry.length() / verity::BLOCK as u64;
                Some((target, *roothash, verity::Parameters { data_blocks, salt: *salt }))
            }
            TargetKind::Uki | TargetKind::BootFile { .. } | TargetKind::Content { .. } => None,
        })
    }

    /// The rules that span fields.
    fn check(&self) -> Result<(), DocumentError> {
        for (field, text) in [("product", &self.product), ("board", &self.board), ("version", &self.version)]
        {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b"._-~^".contains(&b);
            if text.is_empty() || text.len() > 64 || !text.bytes().all(plain) {
                return value(MANIFEST, field, text, "must be 1 to 64 of A-Z a-z 0-9 . _ - ~ ^");
            }
        }
        if self.targets.len() > MAX_TARGETS || self.payloads.len() > MAX_PAYLOADS {
            let is = format!("{} targets, {} payloads", self.targets.len(), self.payloads.len());
            let must = format!("at most {MAX_TARGETS} and {MAX_PAYLOADS} are allowed");
            return value(MANIFEST, "number of entries", is, must);
        }
        self.check_targets()?;
        payload::check_all(&self.payloads, &self.targets)
    }

    /// A target by its position, if its kind is known.
    pub fn target(&self, position: u16) -> Option<&Target> {
        self.targets.get(usize::from(position)).and_then(Entry::known)
    }

    fn check_targets(&self) -> Result<(), DocumentError> {
        let (mut slots, mut ukis, mut esp_bytes, mut names) = (0, 0, 0u64, Vec::new());
        for target in self.targets.iter().filter_map(Entry::known) {
            let length = target.object.geometry.length();
            match &target.kind {
                TargetKind::Slot { .. } => {
                    slots += 1;
                    if length == 0 || !length.is_multiple_of(verity::BLOCK as u64) {
                        return value(TARGET, "slot length", length, "must be whole blocks of 4096 bytes");
                    }
                }
                TargetKind::Uki => {
                    ukis += 1;
                    esp_bytes = esp_bytes.saturating_add(length);
                }
                TargetKind::BootFile { path } => {
                    check_path(path)?;
                    if path.to_ascii_lowercase().starts_with("efi/linux/") {
                        return value(
                            TARGET,
                            "path",
                            path,
                            "must not be in EFI/Linux: entries are the agent's",
                        );
                    }
                    esp_bytes = esp_bytes.saturating_add(length);
                    names.push(("boot file", path.to_ascii_lowercase()));
                }
                TargetKind::Content { name } => {
                    check_path(name)?;
                    names.push(("content", name.clone()));
                }
            }
        }
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return value(TARGET, pair[0].0, &pair[0].1, "must stand once");
        }
        if slots > 1 || slots != ukis {
            let is = format!("{slots} slot images and {ukis} UKIs");
            return value(MANIFEST, "system", is, "must be one of each, or none of either");
        }
        self.check_needs(esp_bytes)
    }

    fn check_needs(&self, esp_bytes: u64) -> Result<(), DocumentError> {
        let slot = self.slot();
        let rows = [
            (
                "slot bytes",
                self.needs.slot_bytes,
                slot.map_or(0, |(target, ..)| target.object.geometry.length()),
            ),
            ("verity bytes", self.needs.verity_bytes, slot.map_or(0, |(_, _, tree)| tree.hash_area_bytes())),
            ("ESP bytes", self.needs.esp_bytes, esp_bytes),
        ];
        for (field, is, least) in rows {
            if is < least {
                return value(NEEDS, field, is, format!("the targets take {least}"));
            }
        }
        Ok(())
    }
}

/// A manifest while it is read.
#[derive(Default)]
struct Draft {
    format: Option<u64>,
    product: Option<String>,
    board: Option<String>,
    arch: Option<Arch>,
    version: Option<String>,
    min_agent_format: Option<u8>,
    built_s: Option<u32>,
    needs: Option<Needs>,
    targets: Option<Vec<Entry<Target>>>,
    payloads: Option<Vec<Entry<Payload>>>,
    profile: Option<String>,
}

impl Draft {
    fn field(&mut self, reader: &mut Reader<'_>, key: i64) -> Result<bool, DocumentError> {
        match key {
            0 => {
                let format = reader.uint("format")?;
                if format != FORMAT {
                    return value(MANIFEST, "format", format, format!("must be {FORMAT}"));
                }
                self.format = Some(format);
            }
            1 => self.product = Some(reader.text("product")?),
            2 => self.board = Some(reader.text("board")?),
            3 => self.arch = Some(parse_arch(reader)?),
            4 => self.version = Some(reader.text("version")?),
            5 => self.min_agent_format = Some(reader.uint("minimum agent format")?),
            6 => self.built_s = Some(reader.uint("time of the sources")?),
            7 => self.needs = Some(parse_needs(reader)?),
            8 => self.targets = Some(reader.list("targets", MAX_TARGETS, Target::parse)?),
            9 => self.payloads = Some(reader.list("payloads", MAX_PAYLOADS, Payload::parse)?),
            -1 => self.profile = Some(reader.text("profile")?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn finish(self, ignored: Ignored) -> Result<Manifest, DocumentError> {
        need(self.format, MANIFEST, "format")?;
        Ok(Manifest {
            product: need(self.product, MANIFEST, "product")?,
            board: need(self.board, MANIFEST, "board")?,
            arch: need(self.arch, MANIFEST, "processor")?,
            version: need(self.version, MANIFEST, "version")?,
            min_agent_format: need(self.min_agent_format, MANIFEST, "minimum agent format")?,
            built_s: need(self.built_s, MANIFEST, "time of the sources")?,
            needs: need(self.needs, MANIFEST, "needs")?,
            targets: need(self.targets, MANIFEST, "targets")?,
            payloads: need(self.payloads, MANIFEST, "payloads")?,
            profile: self.profile,
            ignored,
        })
    }
}

fn arch_number(arch: Arch) -> u8 {
    match arch {
        Arch::X86_64 => 1,
        Arch::Arm64 => 2,
    }
}

fn parse_arch(reader: &mut Reader<'_>) -> Result<Arch, DocumentError> {
    let number: u8 = reader.uint("processor")?;
    let found = Arch::ALL.into_iter().find(|arch| arch_number(*arch) == number);
    found.map_or_else(|| value(MANIFEST, "processor", number, "must be 1 (x86_64) or 2 (arm64)"), Ok)
}

fn parse_needs(reader: &mut Reader<'_>) -> Result<Needs, DocumentError> {
    let mut found = [None; 3];
    reader.map(NEEDS, |reader, key| {
        let field = usize::try_from(key).ok().and_then(|key| found.get_mut(key));
        let Some(field) = field else { return Err(DocumentError::MustUnderstand { part: NEEDS, key }) };
        *field = Some(reader.uint("bytes")?);
        Ok(true)
    })?;
    Ok(Needs {
        slot_bytes: need(found[0], NEEDS, "slot bytes")?,
        verity_bytes: need(found[1], NEEDS, "verity bytes")?,
        esp_bytes: need(found[2], NEEDS, "ESP bytes")?,
    })
}

/// A path of plain names: relative, no `.` or `..`, nothing that FAT or a shell would read differently.
fn check_path(path: &str) -> Result<(), DocumentError> {
    let plain = |name: &str| {
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._+~-".contains(&b);
        !name.is_empty() && !name.ends_with('.') && name.bytes().all(allowed)
    };
    if path.len() <= document::MAX_TEXT && path.split('/').all(plain) {
        return Ok(());
    }
    value(TARGET, "path", path, "must be plain names joined by `/`")
}

impl Target {
    fn write(&self) -> Vec<u8> {
        let map = |kind| write_object(kind, &self.object);
        match &self.kind {
            TargetKind::Slot { roothash, salt, uuid } => {
                map(TARGET_SLOT).bytes(4, &roothash.0).bytes(5, salt).bytes(6, uuid)
            }
            TargetKind::Uki => map(TARGET_UKI),
            TargetKind::BootFile { path } => map(TARGET_BOOT_FILE).text(7, path),
            TargetKind::Content { name } => map(TARGET_CONTENT).text(7, name),
        }
        .finish(&self.ignored)
    }

    fn parse(reader: &mut Reader<'_>) -> Result<Entry<Self>, DocumentError> {
        let kind = reader.peek_kind(TARGET)?;
        if kind < 0 {
            return Ok(Entry::Ignored(reader.raw()?.to_vec()));
        }
        let mut object = ObjectFields::default();
        let (mut roothash, mut salt, mut uuid, mut name) = (None, None, None, None);
        let ignored = reader.map(TARGET, |reader, key| {
            match (kind, key) {
                (_, 0) => {
                    reader.int()?;
                }
                (TARGET_SLOT, 4) => roothash = Some(Digest(reader.array("roothash")?)),
                (TARGET_SLOT, 5) => salt = Some(reader.array("salt")?),
                (TARGET_SLOT, 6) => uuid = Some(reader.array("UUID")?),
                (TARGET_BOOT_FILE | TARGET_CONTENT, 7) => name = Some(reader.text("path")?),
                (_, key) => return object.field(reader, TARGET, key),
            }
            Ok(true)
        })?;
        let kind = match kind {
            TARGET_SLOT => TargetKind::Slot {
                roothash: need(roothash, TARGET, "roothash")?,
                salt: need(salt, TARGET, "salt")?,
                uuid: need(uuid, TARGET, "UUID")?,
            },
            TARGET_UKI => TargetKind::Uki,
            TARGET_BOOT_FILE => TargetKind::BootFile { path: need(name, TARGET, "path")? },
            TARGET_CONTENT => TargetKind::Content { name: need(name, TARGET, "name")? },
            kind => return Err(DocumentError::MustUnderstand { part: TARGET, key: kind }),
        };
        Ok(Entry::Known(Self { object: object.finish(TARGET)?, kind, ignored }))
    }
}
