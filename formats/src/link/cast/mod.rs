//! A broadcast: one sends, anybody takes in, at any time, whatever is missed; nobody answers. Layout: `docs/links.md`.
//!
//! An object is cut into symbols; an erasure code adds as many again, so that any K of a block's symbols give the block.
//! One wrong symbol would spoil a whole block: so every symbol is verified by itself before it counts, by a tree of hashes
//! whose top the signed head carries. What came before its hashes waits for them, within limits. What is decoded is
//! verified against the object's id as ever; the tree only keeps symbols from being wasted.
//!
//! - [`code`]: erasure codes, pluggable; [`tree`]: the hashes
//! - [`packet`]: what goes over the air; [`send`]: in which order; [`index`]: what is on the air
//! - [`catch`]: who takes one object in, into a [`store`]; [`tune`]: who takes in all that is on the air

pub mod catch;
pub mod code;
pub mod index;
pub mod packet;
pub mod send;
pub mod store;
pub mod tree;
pub mod tune;

/// Most source symbols of a block: 8 MiB of 1 KiB symbols. Decoding takes twice that in memory for a moment.
pub const BLOCK_SYMBOLS: u32 = 8192;
/// Most blocks of a cast: 64 MiB of 1 KiB symbols; larger objects are for other carriers.
pub const BLOCKS_MAX: u32 = 8;

/// How an object is cut: blocks of nearly equal length, their symbols sent in turns, source symbols first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Bytes of the object.
    pub length: u32,
    /// Bytes of a symbol: a power of two from 64 to 1024.
    pub symbol: u16,
}

impl Cut {
    /// A cut; `None` if the object is empty or too long, or the symbol has no such size.
    pub fn new(length: u32, symbol: u16) -> Option<Self> {
        let cut = Self { length, symbol };
        let fits = (64..=1024).contains(&symbol) && symbol.is_power_of_two();
        (fits && length > 0 && cut.blocks() <= BLOCKS_MAX).then_some(cut)
    }

    /// Source symbols of the object.
    pub fn sources(&self) -> u32 {
        self.length.div_ceil(self.symbol.into())
    }

    /// Number of blocks.
    pub fn blocks(&self) -> u32 {
        self.sources().div_ceil(BLOCK_SYMBOLS)
    }

    /// Source symbols of a block; the last may be padding, which is zeros. There are as many repair symbols.
    pub fn per_block(&self) -> u32 {
        self.sources().div_ceil(self.blocks())
    }

    /// Symbols in all.
    pub fn symbols(&self) -> u32 {
        2 * self.per_block() * self.blocks()
    }

    /// Block of a symbol, and its place there: source symbols first.
    pub fn place(&self, symbol: u32) -> (u32, u32) {
        (symbol % self.blocks(), symbol / self.blocks())
    }
}

#[cfg(test)]
mod tests;
