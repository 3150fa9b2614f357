//! A device that reads a repository.

use formats::arch::Arch;
use formats::catalogue::Way;
use formats::frame::{Scope, target_tag};
use formats::manifest::Manifest;
use formats::object::{self, Verifier};
use formats::repository as names;
use formats::roles::{Chain, Root};
use formats::trust::{self, Accepted, Device, TimeWatermark, Verdict};
use std::fs;
use std::path::Path;

/// A device that reads a repository as it would over HTTP: whole small files by name, blocks of objects.
pub struct Reader<'a> {
    pub repo: &'a Path,
    pub root: Root,
    pub fetched: u64,
}

impl Reader<'_> {
    pub fn get(&mut self, name: &str) -> Option<Vec<u8>> {
        let bytes = fs::read(self.repo.join(name)).ok()?;
        self.fetched += bytes.len() as u64;
        Some(bytes)
    }

    /// The newest release that the device may follow.
    pub fn release(&mut self, accepted: Option<Accepted>) -> (formats::hex::Digest, Manifest) {
        let tag = target_tag("edge", "vm", Arch::X86_64);
        let frame = self.get(&names::announcement(&tag, 0, Scope::All)).unwrap();
        assert!(self.fetched <= 270, "the routine check took {} bytes", self.fetched);
        if let Err(trust::Refusal::RootUnknown { .. }) = trust::authenticate(&frame, &self.root) {
            let chain = Chain::parse(&self.get(names::ROOTS).unwrap()).unwrap();
            self.root = chain.follow(&self.root).unwrap();
        }
        let verified = trust::authenticate(&frame, &self.root).unwrap();
        let device =
            Device { product: "edge", board: "vm", arch: Arch::X86_64, channel: 0, site: None, id: "d" };
        let watermark = TimeWatermark::of_root(&self.root);
        assert_eq!(trust::judge(&verified, &device, accepted, watermark, None), Ok(Verdict::Newer));
        let id = verified.announcement().manifest;
        let bytes = self.get(&names::object(&id)).unwrap();
        (id, trust::open_manifest(&verified, &bytes).unwrap())
    }

    /// The bytes of a way's object, each block verified on arrival.
    pub fn object(&mut self, way: &Way<'_>) -> Vec<u8> {
        let (id, geometry) = (way.object.id, way.object.geometry);
        let bytes = self.get(&names::object(&id)).unwrap();
        let lists = match geometry.blocks() {
            0 | 1 => object::leaf(&bytes).to_vec(),
            _ => self.get(&names::lists(&id)).unwrap(),
        };
        let verifier = Verifier::from_lists(id, geometry, &lists).unwrap();
        for (index, block) in bytes.chunks(geometry.block().bytes() as usize).enumerate() {
            verifier.block(index as u64, block).unwrap();
        }
        bytes
    }
}
