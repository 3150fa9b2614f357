//! Names of boot entries on the ESP: `<version>_<roothash8>[+<left>[-<done>]].efi` in `EFI/Linux`.
//!
//! The counters are those of the UAPI group's Boot Loader Specification, "Boot counting". The agent learns its own slot
//! from device-mapper, never from a file name; names only order entries and carry tries.

/// Folder of unified kernel images on the ESP.
pub const FOLDER: &str = "EFI/Linux";

/// A parsed entry name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntryName {
    /// Release version.
    pub version: String,
    /// First eight digits of the roothash that the entry opens.
    pub roothash8: String,
    /// Tries left and done; `None` for an entry that is not counted.
    pub tries: Option<Tries>,
}

/// Boot counters in an entry name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tries {
    /// Boots left before the entry counts as bad.
    pub left: u32,
    /// Boots begun; 0 is not written.
    pub done: u32,
}

impl EntryName {
    /// An entry without counters.
    pub fn uncounted(version: &str, roothash8: &str) -> Self {
        Self { version: version.to_owned(), roothash8: roothash8.to_owned(), tries: None }
    }

    /// Parses a file name; anything that Farhold did not name gives `None`.
    pub fn parse(file: &str) -> Option<Self> {
        let stem = file.strip_suffix(".efi")?;
        let (base, tries) = match stem.rsplit_once('+') {
            Some((base, counters)) => (base, Some(Tries::parse(counters)?)),
            None => (stem, None),
        };
        let (version, roothash8) = base.rsplit_once('_')?;
        let digest = roothash8.len() == 8
            && roothash8.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        let plain = !version.is_empty()
            && version.len() <= 64
            && version.bytes().all(|b| b.is_ascii_alphanumeric() || b".-~^".contains(&b));
        (digest && plain).then(|| Self {
            version: version.to_owned(),
            roothash8: roothash8.to_owned(),
            tries,
        })
    }

    /// The file name on the ESP.
    pub fn file_name(&self) -> String {
        let counters = match self.tries {
            None => String::new(),
            Some(Tries { left, done: 0 }) => format!("+{left}"),
            Some(Tries { left, done }) => format!("+{left}-{done}"),
        };
        format!("{}_{}{counters}.efi", self.version, self.roothash8)
    }

    /// The id by which systemd-boot and `LoaderEntryOneShot` know the entry: the name without counters.
    pub fn id(&self) -> String {
        format!("{}_{}.efi", self.version, self.roothash8)
    }
}

impl Tries {
    fn parse(text: &str) -> Option<Self> {
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.len() <= 9 && digits.bytes().all(|b| b.is_ascii_digit());
            plain.then(|| digits.parse().ok()).flatten()
        };
        match text.split_once('-') {
            Some((left, done)) => Some(Self { left: number(left)?, done: number(done)? }),
            None => Some(Self { left: number(text)?, done: 0 }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for name in ["1.2.3_0123abcd.efi", "1.2.3-rc1_0123abcd+3.efi", "2_ffffffff+0-3.efi"] {
            assert_eq!(EntryName::parse(name).unwrap().file_name(), name);
        }
        assert_eq!(EntryName::parse("1.0_0123abcd+2-1.efi").unwrap().id(), "1.0_0123abcd.efi");
    }

    #[test]
    fn foreign_names_are_refused() {
        for name in [
            "",
            ".efi",
            "a.efi",
            "1.0_0123abcd",
            "1.0_0123ABCD.efi",
            "1.0_0123abcd+.efi",
            "_0123abcd.efi",
            "1.0_0123abcd+3-.efi",
            "1/0_0123abcd.efi",
            "1.0_0123abcd+99999999999.efi",
        ] {
            assert_eq!(EntryName::parse(name), None, "{name}");
        }
    }
}
