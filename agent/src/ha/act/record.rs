//! What operators commanded, who and when: one JSON line each, durable before the command is carried out.
//!
//! The wall clock stands beside the time since boot, because devices boot with wrong ones. It does not know commands.

use crate::clock::boot_ms;
use anyhow::{Context, Result, ensure};
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The file in the state folder.
const FILE: &str = "operators.jsonl";
/// A longer file becomes the older one, bytes.
const FILE_MAX: u64 = 256 << 10;
/// Longest name that is kept, characters.
const WHO_MAX: usize = 80;

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

/// Adds a line.
///
/// # Errors
/// The file system's; the command must then not be carried out.
pub fn add(state: &Path, who: &str, command: &str, epoch: Option<u64>) -> Result<()> {
    let path = path(state);
    let name = || format!("record a command in {}", path.display());
    if std::fs::metadata(&path).is_ok_and(|file| file.len() > FILE_MAX) {
        std::fs::rename(&path, path.with_extension("old")).with_context(name)?;
    }
    let who: String = who.chars().filter(|letter| !letter.is_control()).take(WHO_MAX).collect();
    let line = json!({ "at": wall_clock(), "since_boot_ms": boot_ms(), "who": who, "command": command, "epoch": epoch });
    // After a power cut in the middle of a line, the next one begins on its own.
    let torn = std::fs::read(&path).is_ok_and(|text| text.last().is_some_and(|last| *last != b'\n'));
    let line = format!("{}{line}\n", if torn { "\n" } else { "" });
    let file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(&path);
    let mut file = file.with_context(name)?;
    file.write_all(line.as_bytes()).with_context(name)?;
    file.sync_all().with_context(name)?;
    crate::durable::sync_folder(state)
}

/// The last line, if there is one that can be read.
pub fn last(state: &Path) -> Option<Value> {
    read(state).ok()?.pop()
}

/// All lines of the present file, oldest first.
///
/// # Errors
/// If there is none, or it is too long.
pub fn read(state: &Path) -> Result<Vec<Value>> {
    let path = path(state);
    let size = std::fs::metadata(&path).with_context(|| format!("read {}", path.display()))?.len();
    ensure!(size <= 2 * FILE_MAX, "read {}: it has {size} bytes", path.display());
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    // A line that a power cut left unfinished was not carried out either.
    Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
}

/// The device's wall clock, whatever it is worth, as RFC 3339 in UTC.
fn wall_clock() -> String {
    let seconds = clock_gettime(ClockId::CLOCK_REALTIME).map_or(0, |now| now.tv_sec());
    utc(seconds)
}

/// Days to a date: Howard Hinnant, "chrono-compatible low-level date algorithms", `civil_from_days`.
fn utc(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_right() {
        for (seconds, date) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696, "2000-02-29T12:34:56Z"),
            (1_795_254_645, "2026-11-21T09:50:45Z"),
            (-1, "1969-12-31T23:59:59Z"),
        ] {
            assert_eq!(utc(seconds), date);
        }
    }

    #[test]
    fn lines_are_kept_and_a_torn_one_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        assert!(last(folder.path()).is_none());
        add(folder.path(), "ann\n(uid 0)", "force-solo", Some(7)).unwrap();
        std::fs::OpenOptions::new()
            .append(true)
            .open(folder.path().join(FILE))
            .unwrap()
            .write_all(b"{\"at\":")
            .unwrap();
        let line = last(folder.path()).unwrap();
        assert_eq!((line["who"].as_str(), line["epoch"].as_u64()), (Some("ann(uid 0)"), Some(7)));
        add(folder.path(), &"x".repeat(500), "trust", None).unwrap();
        assert_eq!(read(folder.path()).unwrap().len(), 2, "the torn line swallowed the next");
    }
}
