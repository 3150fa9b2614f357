//! Erasure codes. The default is Reed-Solomon over 16-bit words (Leopard), free of patents and ideal: any K symbols do.

use reed_solomon_simd::ReedSolomonDecoder;

/// A code: from source symbols to as many repair symbols, and back from any K of all.
pub trait Code {
    /// Its number in a head.
    fn number(&self) -> u8;
    /// The repair symbols of a block, one after the other.
    ///
    /// # Errors
    /// In words, if the code cannot do blocks of this size.
    fn repair(&self, source: &[u8], symbol: usize) -> Result<Vec<u8>, String>;
    /// Makes the source symbols of a block that it does not have, of `sources` of those that it has.
    ///
    /// # Errors
    /// In words, if there are too few; the block's own.
    fn restore(&self, sources: usize, symbol: usize, block: &mut dyn Symbols) -> Result<(), String>;
}

/// A block's symbols by their places: repair symbols from the number of sources on.
pub trait Symbols {
    /// Places of those that are here.
    fn have(&self) -> Vec<u32>;
    /// Reads one of them.
    ///
    /// # Errors
    /// In words.
    fn get(&mut self, place: u32, into: &mut [u8]) -> Result<(), String>;
    /// Takes one that was made.
    ///
    /// # Errors
    /// In words.
    fn put(&mut self, place: u32, bytes: &[u8]) -> Result<(), String>;
}

/// Reed-Solomon.
#[derive(Clone, Copy, Debug, Default)]
pub struct ReedSolomon;

impl Code for ReedSolomon {
    fn number(&self) -> u8 {
        1
    }

    fn repair(&self, source: &[u8], symbol: usize) -> Result<Vec<u8>, String> {
        let sources = source.chunks_exact(symbol);
        let repaired = reed_solomon_simd::encode(sources.len(), sources.len(), sources);
        Ok(repaired.map_err(|error| error.to_string())?.concat())
    }

    fn restore(&self, sources: usize, symbol: usize, block: &mut dyn Symbols) -> Result<(), String> {
        let mut decoder =
            ReedSolomonDecoder::new(sources, sources, symbol).map_err(|error| error.to_string())?;
        let mut bytes = vec![0; symbol];
        let have = block.have();
        for place in &have {
            block.get(*place, &mut bytes)?;
            let at = *place as usize;
            let added = match at.checked_sub(sources) {
                None => decoder.add_original_shard(at, &bytes),
                Some(repair) => decoder.add_recovery_shard(repair, &bytes),
            };
            added.map_err(|error| error.to_string())?;
        }
        let restored = decoder.decode().map_err(|error| error.to_string())?;
        for place in (0..sources as u32).filter(|place| have.binary_search(place).is_err()) {
            let bytes = restored.restored_original(place as usize).ok_or("the code gave no symbol")?;
            block.put(place, bytes)?;
        }
        Ok(())
    }
}
