//! Which old file a new file should be compared with.
//!
//! Knows paths, lengths and samples of content. In this order: same path; same path once versions are taken out (digits
//! and what joins them); same base name taken so; most sampled content in common.

use super::source::Image;
use anyhow::Result;
use formats::delta::erofs::{File, Inode};
use formats::delta::view::{Extent, View};
use std::collections::HashMap;

/// Most samples of one file.
const MAX_SAMPLES: usize = 4096;
/// Bytes of a file that are sampled.
const MAX_SAMPLED: u64 = 8 << 20;
/// Most old files that are remembered for one sample.
const MAX_HOLDERS: usize = 16;

/// The path with each version number replaced by `#`: `libssl.so.3.0.2` and `libssl.so.3.1` become equal.
#[must_use]
pub fn normalised(path: &str) -> String {
    let mut out = String::new();
    for letter in path.chars() {
        let version =
            letter.is_ascii_digit() || matches!(letter, '.' | '-' | '+' | '~') && out.ends_with('#');
        if !version {
            out.push(letter);
        } else if !out.ends_with('#') {
            out.push('#');
        }
    }
    out
}

fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// All extents of a file, in order.
#[must_use]
pub fn extents(inode: &Inode) -> Vec<Extent> {
    inode.data.into_iter().chain(inode.tail).collect()
}

/// Content-defined samples: hashes of 32 bytes wherever the hash says so, about one in 256.
fn samples(image: &Image, inode: &Inode) -> Result<Vec<u64>> {
    let extents = extents(inode);
    let bytes = View::new(image, &extents)?.slice(0, MAX_SAMPLED)?;
    let (mut hash, mut found) = (0u64, Vec::new());
    for (at, byte) in bytes.iter().enumerate() {
        let spread = (u64::from(*byte) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash = (hash << 2).wrapping_add(spread ^ spread >> 29);
        if at >= 32 && hash >> 40 & 0xff == 0 {
            found.push(hash);
        }
    }
    found.sort_unstable();
    found.dedup();
    found.truncate(MAX_SAMPLES);
    Ok(found)
}

/// Old files, found by name and content.
pub struct Matcher<'a> {
    image: &'a Image,
    files: &'a [File],
    paths: HashMap<&'a str, usize>,
    normal: HashMap<String, Vec<usize>>,
    bases: HashMap<String, Vec<usize>>,
    holders: Option<HashMap<u64, Vec<usize>>>,
}

impl<'a> Matcher<'a> {
    /// Indexes the old `files` of `image`.
    #[must_use]
    pub fn new(image: &'a Image, files: &'a [File]) -> Self {
        let (mut paths, mut normal, mut bases) = (HashMap::new(), HashMap::new(), HashMap::new());
        for (number, file) in files.iter().enumerate() {
            paths.insert(file.path.as_str(), number);
            let entry: &mut Vec<usize> = normal.entry(normalised(&file.path)).or_default();
            entry.push(number);
            let entry: &mut Vec<usize> = bases.entry(normalised(base(&file.path))).or_default();
            entry.push(number);
        }
        Self { image, files, paths, normal, bases, holders: None }
    }

    /// The old file for `new` of `image`, if any is like it.
    ///
    /// # Errors
    /// If an image cannot be read.
    pub fn find(&mut self, image: &Image, new: &File) -> Result<Option<&'a File>> {
        if let Some(number) = self.paths.get(new.path.as_str()) {
            return Ok(self.files.get(*number));
        }
        let nearest = |candidates: Option<&Vec<usize>>| {
            let candidates = candidates.into_iter().flatten();
            candidates
                .filter_map(|number| self.files.get(*number))
                .min_by_key(|old| old.inode.size.abs_diff(new.inode.size))
        };
        let by_name = nearest(self.normal.get(&normalised(&new.path)))
            .or_else(|| nearest(self.bases.get(&normalised(base(&new.path)))));
        match by_name {
            Some(file) => Ok(Some(file)),
            None => self.alike(image, new),
        }
    }

    fn alike(&mut self, image: &Image, new: &File) -> Result<Option<&'a File>> {
        let wanted = samples(image, &new.inode)?;
        if self.holders.is_none() {
            let mut holders: HashMap<u64, Vec<usize>> = HashMap::new();
            for (number, file) in self.files.iter().enumerate() {
                for sample in samples(self.image, &file.inode)? {
                    let entry = holders.entry(sample).or_default();
                    if entry.len() < MAX_HOLDERS {
                        entry.push(number);
                    }
                }
            }
            self.holders = Some(holders);
        }
        let mut shared: HashMap<usize, usize> = HashMap::new();
        for sample in &wanted {
            for number in self.holders.iter().filter_map(|holders| holders.get(sample)).flatten() {
                *shared.entry(*number).or_default() += 1;
            }
        }
        let best = shared.into_iter().max_by_key(|(number, count)| (*count, std::cmp::Reverse(*number)));
        // Less than a twentieth in common is chance.
        let best = best.filter(|(_, count)| count * 20 > wanted.len());
        Ok(best.and_then(|(number, _)| self.files.get(number)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_taken_out() {
        let same = [
            (
                "usr/lib/modules/6.1.0-32-amd64/kernel/fs/ext4/ext4.ko",
                "usr/lib/modules/6.1.0-9-amd64/kernel/fs/ext4/ext4.ko",
            ),
            ("usr/lib/libicu.so.72.1", "usr/lib/libicu.so.76"),
            ("boot/vmlinuz-6.1.0-32-amd64", "boot/vmlinuz-6.12.43+deb13-amd64"),
        ];
        assert_eq!(normalised(same[0].0), normalised(same[0].1));
        assert_eq!(normalised(same[1].0), normalised(same[1].1));
        assert_ne!(normalised(same[2].0), normalised(same[2].1), "words in versions are kept");
        assert_ne!(normalised("usr/bin/perl"), normalised("usr/bin/python"));
    }
}
