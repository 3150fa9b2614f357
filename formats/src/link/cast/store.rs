//! Where right symbols are kept until they are enough: a file on a device, memory elsewhere.

/// A place for so many bytes.
pub trait Store {
    /// Writes bytes at a place.
    ///
    /// # Errors
    /// In words.
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), String>;
    /// Reads bytes that were written.
    ///
    /// # Errors
    /// In words.
    fn get(&self, at: u64, into: &mut [u8]) -> Result<(), String>;
}

/// Memory.
#[derive(Clone, Debug, Default)]
pub struct Memory(Vec<u8>);

impl Store for Memory {
    fn put(&mut self, at: u64, bytes: &[u8]) -> Result<(), String> {
        let at = usize::try_from(at).map_err(|error| error.to_string())?;
        let end = at + bytes.len();
        if self.0.len() < end {
            self.0.resize(end, 0);
        }
        self.0[at..end].copy_from_slice(bytes);
        Ok(())
    }

    fn get(&self, at: u64, into: &mut [u8]) -> Result<(), String> {
        let range = usize::try_from(at).ok().and_then(|at| self.0.get(at..at.checked_add(into.len())?));
        into.copy_from_slice(range.ok_or("read beyond what was written")?);
        Ok(())
    }
}
