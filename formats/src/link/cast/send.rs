//! Who sends: all packets of a round, in an order in which no fade takes all of anything. Round after round is the same.

use super::Cut;
use super::code::Code;
use super::packet::{Head, Packet, Tag, tag};
use super::tree::{self, HASH, PAGE};
use crate::hex::Digest;
use crate::keys::SIGNATURE_BYTES;
use crate::link::name::Name;

/// A page is sent so often in a round: twice before its symbols, with them, and twice after.
const COPIES: u32 = 5;
/// Bytes of a file in a packet.
const PIECE: usize = 1024;

/// Bytes of a symbol for a file of so many: small ones take one symbol.
pub fn symbol_for(length: usize) -> u16 {
    length.next_power_of_two().clamp(64, 1024) as u16
}

/// An object, ready to be sent.
pub struct Cast {
    head: Vec<u8>,
    tag: Tag,
    cut: Cut,
    /// Source and repair symbols of each block.
    blocks: Vec<Vec<u8>>,
    levels: Vec<Vec<u8>>,
}

/// Pieces of a file.
pub fn pieces(name: Name, bytes: &[u8]) -> Vec<Packet> {
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let parts = bytes.chunks(PIECE).enumerate();
    parts.map(|(n, part)| Packet::File(name, length, (n * PIECE) as u32, part.to_vec())).collect()
}

impl Cast {
    /// Cuts, codes, hashes and signs an object.
    ///
    /// # Errors
    /// In words, if the object is empty or too long.
    pub fn new(
        object: Digest,
        bytes: &[u8],
        symbol: u16,
        code: &dyn Code,
        sign: &dyn Fn(&[u8]) -> [u8; SIGNATURE_BYTES],
    ) -> Result<Self, String> {
        let length = u32::try_from(bytes.len()).ok();
        let cut = length.and_then(|length| Cut::new(length, symbol));
        let cut = cut.ok_or_else(|| format!("an object of {} bytes cannot be broadcast", bytes.len()))?;
        let size = usize::from(symbol);
        let mut blocks = vec![Vec::new(); cut.blocks() as usize];
        for index in 0..cut.per_block() * cut.blocks() {
            let start = (index as usize * size).min(bytes.len());
            let end = (start + size).min(bytes.len());
            let block = &mut blocks[cut.place(index).0 as usize];
            let full = block.len() + size;
            block.extend_from_slice(&bytes[start..end]);
            block.resize(full, 0);
        }
        for block in &mut blocks {
            let repair = code.repair(block, size)?;
            block.extend_from_slice(&repair);
        }
        let mut cast = Self { head: Vec::new(), tag: [0; 8], cut, blocks, levels: Vec::new() };
        cast.levels = tree::grow(&object.0, (0..cut.symbols()).map(|index| cast.symbol(index)));
        let top = cast.levels.last().cloned().unwrap_or_default();
        cast.head = Head { code: code.number(), object, cut, top }.sign(sign);
        cast.tag = tag(&cast.head);
        Ok(cast)
    }

    /// Its signed head.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// Its head's tag.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// How it is cut.
    pub fn cut(&self) -> Cut {
        self.cut
    }

    fn symbol(&self, index: u32) -> &[u8] {
        let (block, place) = self.cut.place(index);
        let size = usize::from(self.cut.symbol);
        &self.blocks[block as usize][place as usize * size..][..size]
    }

    /// Groups of symbols that share a page of hashes: as many as a round has.
    pub fn groups(&self) -> u32 {
        self.cut.symbols().div_ceil(PAGE)
    }

    fn page(&self, level: usize, index: u32) -> Option<Packet> {
        let page = self.levels[level].chunks(PAGE as usize * HASH).nth(index as usize)?;
        Some(Packet::Page(self.tag, level as u8, index, page.to_vec()))
    }

    /// The packets of a group: what receivers need to know, pages, symbols.
    pub fn group(&self, group: u32) -> Vec<Packet> {
        let mut packets = vec![Packet::Head(self.head.clone())];
        let groups = self.groups();
        if self.levels.len() > 1 {
            // Far enough apart that a fade takes one copy of a page, near enough that the last ones have theirs.
            let apart = (groups / 24).max(1);
            let ahead = (0..COPIES).map(|copy| (group + groups + 2 * apart - copy * apart % groups) % groups);
            packets.extend(ahead.filter_map(|page| self.page(0, page)));
            for level in 1..self.levels.len() - 1 {
                let pages = (self.levels[level].len() / HASH).div_ceil(PAGE as usize) as u32;
                packets.extend(self.page(level, group % pages));
            }
        }
        let symbols = group * PAGE..((group + 1) * PAGE).min(self.cut.symbols());
        packets.extend(symbols.map(|index| Packet::Symbol(self.tag, index, self.symbol(index).to_vec())));
        packets
    }
}
