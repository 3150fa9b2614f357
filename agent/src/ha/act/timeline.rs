//! Files of the log that decide which timeline Postgres recovers along and which it takes next.
//!
//! Without a server to follow, Postgres recovers along the newest timeline that it has heard of, and takes the next number that it
//! has not heard of. Both go wrong after a promotion elsewhere of which this node saw a part, or nothing. PostgreSQL documentation:
//! "Timelines", `recovery_target_timeline`; `src/backend/access/transam/timeline.c`.

use crate::durable;
use anyhow::{Context, Result};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Length of a segment of the log, bytes; what `initdb` makes it.
const SEGMENT: u64 = 16 << 20;
/// Bytes that are compared at once.
const STEP: usize = 1 << 20;

fn history(log: &Path, timeline: u32) -> PathBuf {
    log.join(format!("{timeline:08X}.history"))
}

fn segment(log: &Path, timeline: u32, position: u64) -> PathBuf {
    let number = position / SEGMENT;
    log.join(format!("{timeline:08X}{:08X}{:08X}", number >> 8, number & 0xff))
}

/// Has the next promotion take timeline `wanted`, as the register says: those between `now` and it were given to promotions of which
/// this node heard nothing. Their histories are empty, which is no child of any timeline: nothing is recovered along them.
///
/// # Errors
/// The file system's.
pub fn reserve(log: &Path, now: u32, wanted: u32) -> Result<()> {
    for timeline in now.saturating_add(1)..wanted {
        let path = history(log, timeline);
        if !path.exists() {
            durable::write(&path, b"", 0o600)?;
            tracing::info!(timeline, "a timeline that this node did not see is passed over");
        }
    }
    Ok(())
}

/// Takes back the reserved numbers that no promotion has passed: a server that starts in recovery would take an empty history
/// for its future, and refuse to start.
///
/// # Errors
/// The file system's.
pub fn give_back(log: &Path, now: u32) -> Result<()> {
    for entry in std::fs::read_dir(log).with_context(|| format!("read {}", log.display()))? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".history"));
        let ahead =
            name.and_then(|name| u32::from_str_radix(name, 16).ok()).is_some_and(|number| number > now);
        if ahead && std::fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// The last line of a history: the timeline before, and where it was left.
fn parent(text: &str) -> Option<(u32, u64)> {
    let line = text.lines().rev().find(|line| !line.trim().is_empty() && !line.starts_with('#'))?;
    let mut fields = line.split_ascii_whitespace();
    let timeline = fields.next()?.parse().ok()?;
    Some((timeline, super::control_file::position(fields.next()?)?))
}

/// Completes the first segment of the newest timeline after `now`, the last one that this node recovered along, from the segment
/// that it continues: up to where they part they have the same bytes. A standby that was cut off while it received that
/// segment anew, from its start, cannot recover otherwise, though it has all that it confirmed. Says whether something was missing.
///
/// # Errors
/// The file system's.
pub fn complete(log: &Path, now: u32) -> Result<bool> {
    let names = std::fs::read_dir(log).with_context(|| format!("read {}", log.display()))?;
    let number = |name: &str| u32::from_str_radix(name.strip_suffix(".history")?, 16).ok();
    let newest = names.filter_map(|entry| number(entry.ok()?.file_name().to_str()?)).max();
    let Some(newest) = newest.filter(|newest| *newest > now) else { return Ok(false) };
    let path = history(log, newest);
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let Some((before, left)) = parent(&text) else { return Ok(false) };
    let (from, to) = (segment(log, before, left), segment(log, newest, left));
    if !from.exists() || !to.exists() {
        return Ok(false);
    }
    let copied = copy_start(&from, &to, left % SEGMENT)?;
    if copied {
        tracing::info!(timeline = newest, "the segment in which the timeline begins was completed");
    }
    Ok(copied)
}

/// Gives `to` the first `len` bytes of `from`, where they differ.
fn copy_start(from: &Path, to: &Path, len: u64) -> Result<bool> {
    let source = File::open(from).with_context(|| format!("open {}", from.display()))?;
    let target = OpenOptions::new().read(true).write(true).open(to);
    let target = target.with_context(|| format!("open {}", to.display()))?;
    let (mut ours, mut theirs) = (vec![0; STEP], vec![0; STEP]);
    let (mut at, mut changed) = (0, false);
    while at < len {
        let step = STEP.min(usize::try_from(len - at)?);
        let (ours, theirs) = (&mut ours[..step], &mut theirs[..step]);
        source.read_exact_at(ours, at).with_context(|| format!("read {}", from.display()))?;
        target.read_exact_at(theirs, at).with_context(|| format!("read {}", to.display()))?;
        if ours != theirs {
            target.write_all_at(ours, at).with_context(|| format!("write {}", to.display()))?;
            changed = true;
        }
        at += step as u64;
    }
    if changed {
        target.sync_all().with_context(|| format!("flush {}", to.display()))?;
    }
    Ok(changed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timelines_of_others_are_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(history(folder.path(), 3), "1\t0/3000000\treason\n").unwrap();
        reserve(folder.path(), 1, 5).unwrap();
        let len =
            |timeline| std::fs::metadata(history(folder.path(), timeline)).map(|found| found.len()).ok();
        assert_eq!((len(2), len(3), len(4), len(5)), (Some(0), Some(19), Some(0), None));
        reserve(folder.path(), 5, 5).unwrap();
        reserve(folder.path(), 6, 5).unwrap();
        assert_eq!(len(6), None);
        // Promoted to 3, and not further: the later number was not used up.
        give_back(folder.path(), 3).unwrap();
        assert_eq!((len(2), len(3), len(4)), (Some(0), Some(19), None));
    }

    #[test]
    fn a_torn_first_segment_is_completed_up_to_where_timelines_part() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path();
        let left = 0x1_0300_5000;
        let old: Vec<u8> = (0..SEGMENT).map(|at| ((at * 7) >> 3) as u8 | 1).collect();
        let mut torn = vec![0; old.len()];
        torn[..0x2000].copy_from_slice(&old[..0x2000]);
        torn[0x5000..0x5004].copy_from_slice(b"more");
        std::fs::write(log.join("000000020000000100000003"), &old).unwrap();
        let path = log.join("000000030000000100000003");
        std::fs::write(&path, &torn).unwrap();
        std::fs::write(history(log, 3), "1\t0/200\tfirst\n\n2\t1/3005000\tno recovery target\n").unwrap();
        assert!(!complete(log, 3).unwrap(), "it recovered along it already");
        assert!(complete(log, 2).unwrap());
        let found = std::fs::read(&path).unwrap();
        assert!(found[..0x5000] == old[..0x5000] && found[0x5000..] == torn[0x5000..]);
        assert!(!complete(log, 2).unwrap(), "nothing is missing");
        assert_eq!(segment(log, 2, left), log.join("000000020000000100000003"));
        // A history of nothing, and one whose segment did not come, leave all as it is.
        std::fs::write(history(log, 4), "3\t1/4000000\tno recovery target\n").unwrap();
        assert!(!complete(log, 2).unwrap());
        std::fs::write(history(log, 5), "").unwrap();
        assert!(!complete(log, 2).unwrap());
    }

    #[test]
    fn histories_are_read() {
        assert_eq!(parent("1\t0/3000028\tno recovery target specified\n"), Some((1, 0x300_0028)));
        assert_eq!(parent("# note\n"), None);
        assert_eq!(parent("x\ty\n"), None);
    }
}
