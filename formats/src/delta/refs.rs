//! One pointer in old bytes, and how to write where it leads in the new image.
//!
//! Does not know where pointers come from (`elf`, `erofs`) nor how addresses move (`map`).

use super::a64;
use super::map::AddressMap;

/// Bytes of one symbol.
pub const SYMBOL: u64 = 24;

/// How a pointer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefKind {
    /// 4 bytes: target minus (own address + `base`).
    Rel32,
    /// 8 bytes: the target.
    Abs64,
    /// 4 bytes: target minus the address `base`, which moves too; in units of `1 << shift`.
    Off32,
    /// AArch64 `b`, `bl`.
    Branch26,
    /// AArch64 conditional branches and literal loads.
    Branch19,
    /// AArch64 `tbz`, `tbnz`.
    Branch14,
    /// AArch64 `adr`.
    Adr,
    /// AArch64 `adrp`.
    Adrp,
    /// AArch64 low 12 bits, in units of `1 << shift`.
    Low12,
    /// 8 bytes: target minus the address `base`, which moves too, minus `shift`.
    Off64,
    /// 4 bytes: number of a symbol; records of 24 bytes after the address `base`, which moves too.
    Symbol32,
    /// 4 bytes: a value that objects share, `target` in its space, which starts at `base`.
    Value32,
    /// EROFS block address: 4 bytes, in units of `1 << shift`.
    Block32,
    /// EROFS inode number: 8 bytes, 32-byte units after the address `base`.
    Nid64,
}

/// A pointer in the old bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ref {
    /// Offset in the file.
    pub at: u64,
    /// How it is stored.
    pub kind: RefKind,
    /// Unit, see [`RefKind`].
    pub shift: u8,
    /// See [`RefKind`].
    pub base: u64,
    /// Address it leads to.
    pub target: u64,
}

impl Ref {
    /// Bytes that it takes.
    #[must_use]
    pub fn width(&self) -> usize {
        match self.kind {
            RefKind::Abs64 | RefKind::Nid64 | RefKind::Off64 => 8,
            RefKind::Symbol32
            | RefKind::Value32
            | RefKind::Rel32
            | RefKind::Off32
            | RefKind::Block32
            | RefKind::Branch26 => 4,
            RefKind::Branch19 | RefKind::Branch14 | RefKind::Adr | RefKind::Adrp | RefKind::Low12 => 4,
        }
    }

    /// Class of its byte `index` for the residue: which kind, and which byte; 0 is no pointer.
    #[must_use]
    pub fn class(&self, index: usize) -> u8 {
        let kind = match self.kind {
            RefKind::Rel32 => 0,
            RefKind::Abs64 => 1,
            RefKind::Off32 => 2,
            RefKind::Branch26 => 3,
            RefKind::Branch19 | RefKind::Branch14 => 4,
            RefKind::Adr | RefKind::Adrp => 5,
            RefKind::Low12 => 6,
            RefKind::Off64 => 7,
            RefKind::Symbol32 => 8,
            RefKind::Value32 => 9,
            RefKind::Block32 => 10,
            RefKind::Nid64 => 11,
        };
        8 + kind * 8 + (index & 7) as u8
    }

    /// Writes the predicted pointer over `bytes`, which hold the old one and now lie at address `va` (`None`: nowhere).
    pub fn project(&self, bytes: &mut [u8], va: Option<u64>, map: &AddressMap) {
        let shared = self.kind == RefKind::Value32;
        let target = if shared { map.value(self.target) } else { map.map(self.target) };
        match self.kind {
            RefKind::Abs64 => put(bytes, &target.to_le_bytes()),
            RefKind::Rel32 => {
                if let Some(va) = va {
                    let value = target.wrapping_sub(va.wrapping_add(self.base)) as u32;
                    put(bytes, &value.to_le_bytes());
                }
            }
            RefKind::Off32 => {
                let value = (target.wrapping_sub(map.map(self.base)) >> self.shift) as u32;
                put(bytes, &value.to_le_bytes());
            }
            RefKind::Off64 => {
                let value = target.wrapping_sub(map.map(self.base)).wrapping_sub(u64::from(self.shift));
                put(bytes, &value.to_le_bytes());
            }
            RefKind::Symbol32 => {
                let number = target.wrapping_sub(map.map(self.base)) / SYMBOL;
                put(bytes, &(number as u32).to_le_bytes());
            }
            RefKind::Value32 => put(bytes, &(target.wrapping_sub(self.base) as u32).to_le_bytes()),
            RefKind::Block32 => put(bytes, &((target >> self.shift) as u32).to_le_bytes()),
            RefKind::Nid64 => put(bytes, &(target.wrapping_sub(map.map(self.base)) >> 5).to_le_bytes()),
            RefKind::Branch26 | RefKind::Branch19 | RefKind::Branch14 => self.code(bytes, va, target),
            RefKind::Adr | RefKind::Adrp | RefKind::Low12 => self.code(bytes, va, target),
        }
    }

    fn code(&self, bytes: &mut [u8], va: Option<u64>, target: u64) {
        if let (Some(va), Some(word)) = (va, bytes.first_chunk_mut::<4>()) {
            a64::write(self, word, va, target);
        }
    }
}

fn put(bytes: &mut [u8], value: &[u8]) {
    if let Some(place) = bytes.get_mut(..value.len()) {
        place.copy_from_slice(value);
    }
}
