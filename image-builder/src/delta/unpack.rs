//! Compressed files of a new image that can be made again, to the bit, from their texts: archives packed by gzip or zlib, such as a
//! distribution's initrd. Their texts are appended to the image, where their files are found in the old image as others are.
//!
//! Whether a file can be made again is tried, not guessed: what is not equal to the byte stays as it is.

use super::source::Image;
use anyhow::{Context, Result};
use flate2::bufread::DeflateDecoder;
use formats::delta::container::Text;
use formats::delta::deflate::{Deflate, Restart, Style};
use formats::delta::view::{Extent, View};
use formats::delta::{MAX_DEFLATED, MAX_DEFLATED_TEXT, MAX_SKIP, MAX_TEXT, MAX_TEXTS, TEXT_PIECE};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};

/// Compressed files below this many bytes are left as they are, and those above: they are held in memory.
const SIZES: std::ops::RangeInclusive<u64> = 64 << 10..=256 << 20;
/// Text that is deflated to find out which program it was.
const TRIAL: usize = 1 << 20;
const PIECE: usize = TEXT_PIECE as usize;
/// What the decoder may have to push behind a block's end: what deflating looks ahead, in pieces.
const SLACK: u64 = 2 * TEXT_PIECE;
/// What the usual programs do comes first.
const LEVELS: [u8; 6] = [6, 9, 5, 7, 8, 4];

/// A compressed file.
pub struct Packed {
    /// Its text.
    pub text: Text,
    /// Where the text lies, behind the image.
    pub at: Extent,
    /// The part of the compressed file, in the image, that deflating gives.
    pub deflated: Extent,
    /// Where deflating can begin, with the number of its bytes before.
    restarts: Vec<(u64, Restart)>,
    /// Members of the archive: name and place, behind the image.
    pub members: Vec<(String, Extent)>,
}

impl Packed {
    /// Where to begin for byte `offset` of the image, and how many bytes to skip then.
    #[must_use]
    pub fn restart(&self, offset: u64) -> (Restart, u64) {
        let wanted = offset - self.deflated.offset;
        let usable =
            self.restarts.iter().rev().find(|(done, at)| done + u64::from(at.phase > 0) <= wanted).copied();
        let (done, restart) = usable.unwrap_or_default();
        (restart, wanted - done)
    }

    /// Most text that is needed to make the bytes from `from` to `to` of the image again.
    fn text_for(&self, from: u64, to: u64) -> u64 {
        let (begin, last) = (self.restart(from).0.text, to - self.deflated.offset);
        let behind = self.restarts.iter().find(|(done, _)| *done >= last);
        let end = behind.map_or(self.text.len, |(_, restart)| self.text.len.min(restart.text + SLACK));
        end - begin
    }
}

/// Texts of the compressed files of an image, in a file that has no name.
pub struct Unpacker {
    out: File,
    start: u64,
    len: u64,
    group: u64,
    /// Per group of the image: parts that are deflated, and the text that they need.
    used: BTreeMap<u64, (usize, u64)>,
    /// What was unpacked.
    pub packed: Vec<Packed>,
}

impl Unpacker {
    /// Texts will lie behind `len` bytes of image, from a multiple of `group` bytes on.
    ///
    /// # Errors
    /// If there is no room for temporary files.
    pub fn new(len: u64, group: u64) -> Result<Self> {
        let out = tempfile::tempfile().context("create a temporary file for unpacked archives")?;
        let start = len.next_multiple_of(group);
        Ok(Self { out, start, len: 0, group, used: BTreeMap::new(), packed: Vec::new() })
    }

    /// Takes what making `packed` again needs from the budgets of its groups; false, and nothing taken, if one has too little.
    fn afford(&mut self, packed: &Packed) -> bool {
        let (start, end) = (packed.deflated.offset, packed.deflated.offset + packed.deflated.len);
        let mut used = Vec::new();
        for group in start / self.group..end.div_ceil(self.group) {
            let (from, to) = (start.max(group * self.group), end.min((group + 1) * self.group));
            let (parts, text) = self.used.get(&group).copied().unwrap_or_default();
            let (parts, text) = (parts + 1, text + packed.text_for(from, to));
            let skip = packed.restart(from).1;
            if parts > MAX_DEFLATED || text > MAX_DEFLATED_TEXT || skip > MAX_SKIP {
                return false;
            }
            used.push((group, (parts, text)));
        }
        self.used.extend(used);
        true
    }

    /// Unpacks the file in `extents` of `image`, if it is an archive that can be packed again; true if so. Only what lies
    /// in the first extent is made again: the rest, a tail among the metadata, goes with the metadata.
    ///
    /// # Errors
    /// If the image cannot be read, or the text not be written.
    pub fn unpack(&mut self, image: &Image, extents: &[Extent]) -> Result<bool> {
        let Some(data) = extents.first().copied() else { return Ok(false) };
        if !SIZES.contains(&data.len) || self.packed.len() as u64 == MAX_TEXTS {
            return Ok(false);
        }
        if image.bytes(data.offset, 3)? != [0x1f, 0x8b, 8] {
            return Ok(false);
        }
        let bytes = View::new(image, extents)?.slice(0, *SIZES.end())?;
        let Some(head) = gzip_head(&bytes) else { return Ok(false) };
        let Some(text) = inflate(&bytes[head..], MAX_TEXT - self.len) else { return Ok(false) };
        let members = members(&text);
        if members.is_empty() {
            return Ok(false);
        }
        let Some(style) = style(&text, &bytes[head..]) else { return Ok(false) };
        let inside = usize::try_from(data.len)?.max(head);
        let (same, restarts) = again(style, &text, &bytes[head..inside]);
        if (same as u64) < data.len / 10 * 9 {
            return Ok(false);
        }
        let at = Extent { offset: self.start + self.len, len: text.len() as u64 };
        let deflated = Extent { offset: data.offset + head as u64, len: same as u64 };
        let members = members
            .into_iter()
            .map(|(name, place)| (name, Extent { offset: at.offset + place.offset, ..place }))
            .collect();
        let packed = Packed { text: Text { len: at.len, style }, at, deflated, restarts, members };
        if !self.afford(&packed) {
            return Ok(false);
        }
        self.out.write_all(&text).context("write an unpacked archive")?;
        self.len += at.len;
        self.packed.push(packed);
        Ok(true)
    }

    /// The image with the texts behind it.
    ///
    /// # Errors
    /// If a file cannot be opened twice.
    pub fn behind(self, image: &Image) -> Result<(Image, Vec<Packed>)> {
        Ok((image.with_texts(self.out, self.start, self.len)?, self.packed))
    }
}

/// Length of the head of a gzip file (RFC 1952).
fn gzip_head(bytes: &[u8]) -> Option<usize> {
    let flags = *bytes.get(3)?;
    let mut at = 10;
    if flags & 4 != 0 {
        at += 2 + usize::from(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    }
    for _ in 0..(flags >> 3 & 1) + (flags >> 4 & 1) {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0)? + 1;
    }
    at += if flags & 2 != 0 { 2 } else { 0 };
    (at < bytes.len()).then_some(at)
}

fn inflate(bytes: &[u8], most: u64) -> Option<Vec<u8>> {
    let mut text = Vec::new();
    DeflateDecoder::new(bytes).take(most + 1).read_to_end(&mut text).ok()?;
    (text.len() as u64 <= most).then_some(text)
}

/// Members of a cpio archive (format `newc`) that have bytes.
pub fn members(text: &[u8]) -> Vec<(String, Extent)> {
    let (mut found, mut at) = (Vec::new(), 0usize);
    loop {
        at += text.get(at..).unwrap_or_default().iter().take_while(|byte| **byte == 0).count();
        at = at.next_multiple_of(4);
        let Some(head) = text.get(at..at + 110).filter(|head| head.starts_with(b"070701")) else {
            return found;
        };
        let field = |index: usize| {
            let digits = std::str::from_utf8(&head[6 + index * 8..14 + index * 8]).ok()?;
            usize::from_str_radix(digits, 16).ok()
        };
        let (Some(mode), Some(len), Some(name_len)) = (field(1), field(6), field(11)) else { return found };
        let data = (at + 110 + name_len).next_multiple_of(4);
        let (Some(name), Some(end)) =
            (text.get(at + 110..at + 110 + name_len), data.checked_add(len).filter(|end| *end <= text.len()))
        else {
            return found;
        };
        if mode & 0o170_000 == 0o100_000 && len > 0 {
            let name = String::from_utf8_lossy(name.strip_suffix(b"\0").unwrap_or(name)).into_owned();
            let name = name.trim_start_matches("./").to_owned();
            found.push((name, Extent { offset: data as u64, len: len as u64 }));
        }
        at = end.next_multiple_of(4);
    }
}

/// The style that gives the first of the `packed` bytes again.
fn style(text: &[u8], packed: &[u8]) -> Option<Style> {
    let styles = LEVELS.into_iter().flat_map(|level| [false, true].map(|zlib| Style { zlib, level }));
    let part = &text[..TRIAL.min(text.len())];
    styles.into_iter().find(|style| {
        let mut deflate = Deflate::new(*style, Restart::default(), &[]);
        deflate.push(part, &mut |_, _| {});
        if part.len() == text.len() {
            deflate.finish();
        }
        let begin = deflate.take();
        !begin.is_empty() && packed.starts_with(&begin)
    })
}

/// Deflates all of `text`: how many bytes are those of `packed`, and where it could begin again.
fn again(style: Style, text: &[u8], packed: &[u8]) -> (usize, Vec<(u64, Restart)>) {
    let mut deflate = Deflate::new(style, Restart::default(), &[]);
    let (mut done, mut restarts) = (0usize, Vec::new());
    let mut pieces = text.chunks(PIECE);
    loop {
        let piece = pieces.next();
        match piece {
            Some(piece) => {
                deflate.push(piece, &mut |here, restart| restarts.push(((done + here) as u64, restart)));
            }
            None => deflate.finish(),
        }
        let bytes = deflate.take();
        let rest = packed.get(done..).unwrap_or_default();
        let same = bytes.iter().zip(rest).take_while(|(left, right)| left == right).count();
        done += same;
        if same < bytes.len() || piece.is_none() {
            restarts.retain(|(at, _)| *at < done as u64);
            return (done, restarts);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    /// The program of this machine, which is there wherever dpkg is.
    fn gzip(level: &str, text: &[u8]) -> Vec<u8> {
        let mut input = tempfile::tempfile().unwrap();
        input.write_all(text).unwrap();
        std::io::Seek::rewind(&mut input).unwrap();
        let mut command = Command::new("gzip");
        let output = command.args(["-n", level]).stdin(input).stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    /// This program's code, zeros, and noise that cannot be packed.
    fn sample() -> Vec<u8> {
        let program = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let mut text = program[..program.len().min(3 << 20)].to_vec();
        text.resize(text.len() + 400_000, 0);
        let mut state = 1u64;
        let noise = std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 56) as u8
        });
        text.extend(noise.take(200_000));
        text.extend_from_slice(&program[..100_000]);
        text
    }

    #[test]
    fn what_gzip_gives_is_made_again_at_every_level() {
        let text = sample();
        for level in 4..=9 {
            let packed = gzip(&format!("-{level}"), &text);
            let head = gzip_head(&packed).unwrap();
            assert_eq!(inflate(&packed[head..], 1 << 30).unwrap().len(), text.len());
            let found = style(&text, &packed[head..]);
            assert_eq!(found, Some(Style { zlib: false, level }), "level {level}");
            let (same, restarts) = again(Style { zlib: false, level }, &text, &packed[head..]);
            assert_eq!((same, restarts.is_empty()), (packed.len() - head - 8, false), "level {level}");
        }
    }

    #[test]
    fn names_and_places_of_an_archive_are_read() {
        let member = |name: &str, mode: u32, bytes: &[u8]| {
            let mut fields = [0usize; 13];
            (fields[1], fields[6], fields[11]) = (mode as usize, bytes.len(), name.len() + 1);
            let mut out = b"070701".to_vec();
            fields.iter().for_each(|field| out.extend(format!("{field:08X}").bytes()));
            out.extend(name.bytes().chain([0]));
            out.resize(out.len().next_multiple_of(4), 0);
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(4), 0);
            out
        };
        let mut text = member("early", 0o100_644, b"first archive");
        text.extend(member("TRAILER!!!", 0, b""));
        text.resize(text.len().next_multiple_of(512), 0);
        let second = text.len() as u64;
        text.extend([member("usr", 0o040_755, b""), member("./usr/a", 0o100_755, b"12345")].concat());
        let found = members(&text);
        assert_eq!(found[0], ("early".into(), Extent { offset: 116, len: 13 }));
        assert_eq!(found[1].0, "usr/a");
        assert!(found[1].1.offset > second && found.len() == 2);
        let at = found[1].1.offset as usize;
        assert_eq!(&text[at..at + 5], b"12345");
        assert!(members(&text[..at + 3]).len() == 1, "cut off");
        assert!(members(b"no archive").is_empty());
    }
}
