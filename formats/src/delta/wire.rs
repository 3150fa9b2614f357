//! Bounded reading and writing of the container's numbers: little-endian, LEB128 varints, zigzag for signed ones.
//!
//! Knows nothing of what the numbers mean. Every read names its part, so that an error says where it is.

use super::{Result, malformed};

/// Reads from a slice and never past it.
pub struct Reader<'a> {
    rest: &'a [u8],
    part: &'static str,
}

impl<'a> Reader<'a> {
    /// Reads `bytes`, which are the container's `part`.
    #[must_use]
    pub fn new(part: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, part }
    }

    /// Bytes that are left.
    #[must_use]
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// The next `len` bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn bytes(&mut self, len: u64) -> Result<&'a [u8]> {
        let cut = usize::try_from(len).ok().and_then(|len| self.rest.split_at_checked(len));
        let Some((head, tail)) = cut else {
            return malformed(
                self.part,
                format!("{len} bytes are needed, but only {} are left", self.rest.len()),
            );
        };
        self.rest = tail;
        Ok(head)
    }

    /// A fixed number of bytes.
    ///
    /// # Errors
    /// When fewer are left.
    pub fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let Some((head, tail)) = self.rest.split_first_chunk::<N>() else {
            return malformed(
                self.part,
                format!("{N} bytes are needed, but only {} are left", self.rest.len()),
            );
        };
        self.rest = tail;
        Ok(*head)
    }

    /// A varint of at most `max`; `what` names it in the error.
    ///
    /// # Errors
    /// When it is cut short, does not fit 64 bits, or is above `max`.
    pub fn varint(&mut self, what: &str, max: u64) -> Result<u64> {
        let mut value = 0u64;
        for shift in (0..70).step_by(7) {
            let [byte] = self.array::<1>()?;
            let low = u64::from(byte & 0x7f);
            if shift == 63 && low > 1 {
                break;
            }
            value |= low << shift;
            if byte & 0x80 == 0 {
                if value > max {
                    return malformed(self.part, format!("{what} is {value}, but must be at most {max}"));
                }
                return Ok(value);
            }
        }
        malformed(self.part, format!("{what} does not fit 64 bits"))
    }

    /// A signed varint (zigzag).
    ///
    /// # Errors
    /// When it is cut short or does not fit 64 bits.
    pub fn signed(&mut self, what: &str) -> Result<i64> {
        let raw = self.varint(what, u64::MAX)?;
        Ok((raw >> 1).cast_signed() ^ -((raw & 1).cast_signed()))
    }

    /// Asserts that everything was read.
    ///
    /// # Errors
    /// When bytes are left.
    pub fn end(&self) -> Result<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            malformed(self.part, format!("{} bytes are left over", self.rest.len()))
        }
    }
}

/// Appends a varint.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed varint (zigzag).
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)).cast_unsigned());
}

/// Little-endian number at `at`, if it is there.
#[must_use]
pub fn le16(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|chunk| u16::from_le_bytes(*chunk))
}

/// Little-endian number at `at`, if it is there.
#[must_use]
pub fn le32(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|chunk| u32::from_le_bytes(*chunk))
}

/// Little-endian number at `at`, if it is there.
#[must_use]
pub fn le64(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|chunk| u64::from_le_bytes(*chunk))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_come_back(values: Vec<u64>, signed: Vec<i64>) {
            let mut bytes = Vec::new();
            for value in &values { put_varint(&mut bytes, *value); }
            for value in &signed { put_signed(&mut bytes, *value); }
            let mut reader = Reader::new("test", &bytes);
            for value in values { prop_assert_eq!(reader.varint("value", u64::MAX).unwrap(), value); }
            for value in signed { prop_assert_eq!(reader.signed("value").unwrap(), value); }
            reader.end().unwrap();
        }
    }

    #[test]
    fn a_number_above_its_limit_is_refused() {
        let mut bytes = Vec::new();
        put_varint(&mut bytes, 1000);
        let error = Reader::new("index", &bytes).varint("count", 999).unwrap_err();
        assert!(error.to_string().contains("count is 1000, but must be at most 999"), "{error}");
    }

    #[test]
    fn a_number_longer_than_64_bits_is_refused() {
        for bytes in [[0xff; 10], [0x80; 10]] {
            assert!(Reader::new("index", &bytes).varint("count", u64::MAX).is_err());
        }
    }
}
