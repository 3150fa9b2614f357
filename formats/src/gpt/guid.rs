//! GUIDs as UEFI stores and prints them: the first three groups are little-endian on disk.

/// A GUID, in the byte order of its text.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guid([u8; 16]);

const GROUPS: [usize; 5] = [4, 2, 2, 2, 6];

impl Guid {
    /// From the sixteen bytes on disk; missing bytes count as 0.
    pub fn from_disk(bytes: &[u8]) -> Self {
        let mut raw = [0u8; 16];
        for (to, from) in raw.iter_mut().zip(bytes) {
            *to = *from;
        }
        Self(swapped(raw))
    }

    /// The sixteen bytes as they stand on disk.
    pub fn to_disk(self) -> [u8; 16] {
        swapped(self.0)
    }

    /// Parses `xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx` in either case.
    pub fn parse(text: &str) -> Option<Self> {
        let lower = text.to_ascii_lowercase();
        let groups: Vec<&str> = lower.split('-').collect();
        let plain =
            groups.len() == 5 && groups.iter().zip(GROUPS).all(|(group, bytes)| group.len() == 2 * bytes);
        plain.then(|| crate::hex::decode(&groups.concat()).map(Self)).flatten()
    }
}

fn swapped(mut bytes: [u8; 16]) -> [u8; 16] {
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

impl std::fmt::Display for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut rest = self.0.as_slice();
        for (n, bytes) in GROUPS.into_iter().enumerate() {
            let (group, tail) = rest.split_at(bytes);
            rest = tail;
            write!(f, "{}{}", if n == 0 { "" } else { "-" }, crate::hex::encode(group))?;
        }
        Ok(())
    }
}

impl std::fmt::Debug for Guid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_disk_order_differ_in_the_first_three_groups() {
        let guid = Guid::parse("C12A7328-F81F-11D2-BA4B-00A0C93EC93B").unwrap();
        assert_eq!(guid.to_string(), "c12a7328-f81f-11d2-ba4b-00a0c93ec93b");
        assert_eq!(guid.to_disk()[..8], [0x28, 0x73, 0x2a, 0xc1, 0x1f, 0xf8, 0xd2, 0x11]);
        assert_eq!(Guid::from_disk(&guid.to_disk()), guid);
    }

    #[test]
    fn other_spellings_are_refused() {
        for bad in
            ["", "c12a7328", "c12a7328f81f11d2ba4b00a0c93ec93b", "g12a7328-f81f-11d2-ba4b-00a0c93ec93b"]
        {
            assert_eq!(Guid::parse(bad), None, "{bad}");
        }
    }
}
