//! Bits in deflate's order: the first is the lowest of its byte.

/// Writes bits.
#[derive(Default)]
pub struct Bits {
    out: Vec<u8>,
    open: u64,
    count: u32,
}

impl Bits {
    /// Begins `phase` bits (0 to 7) into a byte; those before are zeros.
    #[must_use]
    pub fn at(phase: u32) -> Self {
        Self { out: Vec::new(), open: 0, count: phase & 7 }
    }

    /// Appends the lowest `count` bits of `value`, at most 32.
    pub fn put(&mut self, value: u32, count: u32) {
        self.open |= u64::from(value) << self.count;
        self.count += count;
        while self.count >= 8 {
            self.out.push(self.open as u8);
            self.open >>= 8;
            self.count -= 8;
        }
    }

    /// Fills the last byte with zeros.
    pub fn align(&mut self) {
        if self.count > 0 {
            self.out.push(self.open as u8);
            (self.open, self.count) = (0, 0);
        }
    }

    /// Appends whole bytes; the last one must be full.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
    }

    /// Bits that wait for the rest of their byte.
    #[must_use]
    pub fn phase(&self) -> u32 {
        self.count
    }

    /// Takes the bytes that are full.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.out)
    }

    /// Number of bytes that [`Bits::take`] would give.
    #[must_use]
    pub fn done(&self) -> usize {
        self.out.len()
    }
}
