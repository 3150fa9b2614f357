//! What a group's literals may refer back to: windows of the old image, and of the new image before the group.
//!
//! Knows their coding and limits. Windows of the new image are what other groups gave: they were checked by digest
//! before they were written.

use super::view::Extent;
use super::wire::{Reader, put_signed, put_varint};
use super::{MAX_HISTORY, MAX_WINDOWS, ReadAt, Result, malformed, read_vec};

/// Which image a window lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The old image.
    Old,
    /// The new image, before the group.
    New,
}

/// Bytes that a group's literals may refer back to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Which image it lies in.
    pub side: Side,
    /// Where.
    pub at: Extent,
}

/// How far windows of a group may reach.
#[derive(Debug, Clone, Copy)]
pub struct Reach {
    /// Where the group starts.
    pub start: u64,
    /// Length of the old image.
    pub old_len: u64,
    /// End of the new image's bytes that are there before the group.
    pub written: u64,
}

/// Appends `windows` of the group that starts at `start`.
pub fn put_windows(out: &mut Vec<u8>, windows: &[Window], start: u64) {
    put_varint(out, windows.len() as u64);
    let mut cursor = start;
    for window in windows {
        put_varint(out, window.at.len << 1 | u64::from(window.side == Side::New));
        put_signed(out, window.at.offset.wrapping_sub(cursor).cast_signed());
        cursor = window.at.offset.wrapping_add(window.at.len);
    }
}

/// Reads the windows of a group.
///
/// # Errors
/// When they are damaged, too many or too long, or reach beyond what is there.
pub fn get_windows(reader: &mut Reader, reach: &Reach) -> Result<Vec<Window>> {
    let count = reader.varint("number of windows", MAX_WINDOWS)?;
    let (mut windows, mut cursor, mut left) = (Vec::new(), reach.start, MAX_HISTORY);
    for _ in 0..count {
        let head = reader.varint("window", left << 1 | 1)?;
        let (len, side) = (head >> 1, if head & 1 == 1 { Side::New } else { Side::Old });
        let offset = cursor.wrapping_add_signed(reader.signed("offset of a window")?);
        let (end, of) = match side {
            Side::Old => (reach.old_len, "old"),
            Side::New => (reach.written, "new"),
        };
        if offset.checked_add(len).is_none_or(|last| last > end) {
            return malformed(
                "group history",
                format!("{len} bytes at {offset} of the {of} image are asked for, but {end} are there"),
            );
        }
        windows.push(Window { side, at: Extent { offset, len } });
        (cursor, left) = (offset + len, left - len);
    }
    Ok(windows)
}

/// The bytes of `windows`, one behind the other.
///
/// # Errors
/// When an image cannot be read.
pub fn read(windows: &[Window], old: &dyn ReadAt, written: &dyn ReadAt) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for window in windows {
        let (image, what) = match window.side {
            Side::Old => (old, "old image"),
            Side::New => (written, "new image"),
        };
        bytes.extend(read_vec(image, what, window.at.offset, window.at.len)?);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: Reach = Reach { start: 1 << 20, old_len: 5000, written: 1 << 20 };

    fn window(side: Side, offset: u64, len: u64) -> Window {
        Window { side, at: Extent { offset, len } }
    }

    fn decode(windows: &[Window]) -> Result<Vec<Window>> {
        let mut bytes = Vec::new();
        put_windows(&mut bytes, windows, REACH.start);
        let mut reader = Reader::new("t", &bytes);
        let found = get_windows(&mut reader, &REACH)?;
        reader.end().map(|()| found)
    }

    #[test]
    fn windows_come_back() {
        let windows = [window(Side::Old, 0, 5000), window(Side::New, 7, 9), window(Side::Old, 4990, 10)];
        assert_eq!(decode(&windows).unwrap(), windows);
        let image: Vec<u8> = (0..=255).cycle().take(5000).collect();
        let bytes = read(&windows[1..], &image, &vec![3u8; 20]).unwrap();
        assert_eq!(bytes, [&[3u8; 9][..], &image[4990..]].concat());
    }

    #[test]
    fn what_is_not_there_is_refused() {
        let refuse = |windows: &[Window], words: &str| {
            let error = decode(windows).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        refuse(&[window(Side::Old, 1, 5000)], "5000 bytes at 1 of the old image");
        refuse(&[window(Side::New, 1 << 20, 1)], "1 bytes at 1048576 of the new image");
        refuse(&[window(Side::New, u64::MAX, 9)], "of the new image");
        let long = window(Side::New, 0, 1 << 20);
        refuse(&[long; 9], "window is 2097153, but must be at most 1");
        refuse(&vec![window(Side::Old, 0, 1); 257], "number of windows is 257");
    }
}
