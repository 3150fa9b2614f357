//! Erasure codes. The default is Reed-Solomon over 16-bit words (Leopard), free of patents and ideal: any K symbols do.

/// A code: from source symbols to as many repair symbols, and back from any K of all.
pub trait Code {
    /// Its number in a head.
    fn number(&self) -> u8;
    /// The repair symbols of a block, one after the other.
    ///
    /// # Errors
    /// In words, if the code cannot do blocks of this size.
    fn repair(&self, source: &[u8], symbol: usize) -> Result<Vec<u8>, String>;
    /// The source symbols of a block of `sources`, from symbols with their places (repair symbols from `sources` on).
    ///
    /// # Errors
    /// In words, if there are too few.
    fn restore(&self, sources: usize, symbol: usize, have: &[(u32, &[u8])]) -> Result<Vec<u8>, String>;
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

    fn restore(&self, sources: usize, symbol: usize, have: &[(u32, &[u8])]) -> Result<Vec<u8>, String> {
        let place = |at: u32| usize::try_from(at).unwrap_or(usize::MAX);
        let (given, repair): (Vec<_>, Vec<_>) = have.iter().partition(|(at, _)| place(*at) < sources);
        let mut block = vec![0; sources * symbol];
        let mut put = |at: usize, bytes: &[u8]| block[at * symbol..(at + 1) * symbol].copy_from_slice(bytes);
        given.iter().for_each(|(at, bytes)| put(place(*at), bytes));
        if given.len() < sources {
            let originals = given.iter().map(|(at, bytes)| (place(*at), *bytes));
            let repair = repair.iter().map(|(at, bytes)| (place(*at) - sources, *bytes));
            let restored = reed_solomon_simd::decode(sources, sources, originals, repair);
            for (at, bytes) in restored.map_err(|error| error.to_string())? {
                put(at, &bytes);
            }
        }
        Ok(block)
    }
}
