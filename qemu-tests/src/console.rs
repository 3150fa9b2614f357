//! The serial console: everything the firmware, the boot loader, the kernel and the guest said, read from the log
//! that QEMU keeps. Nobody needs to be connected for it to grow.

use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

/// Lines shown when a wait fails.
const TAIL_LINES: usize = 40;
/// Bytes at the end of the log from which those lines are taken.
const TAIL_BYTES: u64 = 64 << 10;
/// Most bytes of text kept while waiting; a pattern is much shorter.
const KEPT: usize = 1 << 20;

/// A reader of the log with its own place in it.
#[derive(Debug)]
pub struct Console {
    log: PathBuf,
    place: u64,
    /// Text from where the last match ended.
    text: String,
}

impl Console {
    /// Reads `log` from byte `place` on; the log may not exist yet.
    pub fn new(log: impl Into<PathBuf>, place: u64) -> Self {
        Self { log: log.into(), place, text: String::new() }
    }

    /// Looks for the earliest of `patterns` in what was said since the last match; the text up to its end is then
    /// done with. Gives the pattern's index and the line it stands in.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn find(&mut self, patterns: &[&str]) -> Result<Option<(usize, String)>> {
        self.take_new()?;
        let earliest = patterns
            .iter()
            .enumerate()
            .filter_map(|(index, pattern)| Some((self.text.find(pattern)?, pattern.len(), index)))
            .min();
        let Some((at, length, index)) = earliest else {
            self.forget();
            return Ok(None);
        };
        let start = self.text[..at].rfind('\n').map_or(0, |newline| newline + 1);
        let end = at + length;
        let stop = self.text[end..].find('\n').map_or(self.text.len(), |newline| end + newline);
        let line = self.text[start..stop].trim().to_owned();
        self.text.drain(..end);
        Ok(Some((index, line)))
    }

    /// What the line of the last match says after it, once the line has ended.
    ///
    /// # Errors
    /// If the log cannot be read.
    pub fn rest_of_line(&mut self) -> Result<Option<String>> {
        self.take_new()?;
        Ok(self.text.split_once('\n').map(|(rest, _)| rest.trim_end().to_owned()))
    }

    /// The last lines of the log, for an error message.
    pub fn tail(&self) -> String {
        match last_bytes(&self.log) {
            Ok(bytes) => {
                let text = plain(&bytes);
                let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
                let shown = &lines[lines.len().saturating_sub(TAIL_LINES)..];
                match shown {
                    [] => "the console is empty".to_owned(),
                    [..] => {
                        format!("last {} lines of the console:\n  | {}", shown.len(), shown.join("\n  | "))
                    }
                }
            }
            Err(error) => format!("no console log: {error:#}"),
        }
    }

    fn take_new(&mut self) -> Result<()> {
        let mut file = match File::open(&self.log) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error).with_context(|| format!("open {}", self.log.display())),
        };
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(self.place))?;
        file.take(KEPT as u64)
            .read_to_end(&mut bytes)
            .with_context(|| format!("read {}", self.log.display()))?;
        // An unfinished escape sequence waits for its rest.
        let whole = bytes.len() - unfinished(&bytes);
        self.place += whole as u64;
        self.text.push_str(&plain(&bytes[..whole]));
        Ok(())
    }

    /// Bounds the text kept: a match never needs more than the last lines.
    fn forget(&mut self) {
        if self.text.len() > KEPT {
            let mut cut = self.text.len() - KEPT / 2;
            while !self.text.is_char_boundary(cut) {
                cut += 1;
            }
            self.text.drain(..cut);
        }
    }
}

fn last_bytes(log: &std::path::Path) -> Result<Vec<u8>> {
    let mut file = File::open(log).with_context(|| format!("open {}", log.display()))?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Length of an escape sequence at the end that has not ended yet.
fn unfinished(bytes: &[u8]) -> usize {
    let Some(at) = bytes.iter().rposition(|byte| *byte == 0x1b) else { return 0 };
    let rest = &bytes[at + 1..];
    let ended = match rest {
        [] => false,
        [b'[', parameters @ ..] => parameters.iter().any(|byte| (0x40..=0x7e).contains(byte)),
        [..] => rest.iter().any(|byte| !(0x20..=0x2f).contains(byte)),
    };
    // A sequence is short; anything longer is text.
    if ended || rest.len() > 32 { 0 } else { rest.len() + 1 }
}

/// Text without terminal control: escape sequences (ECMA-48), carriage returns and other control bytes.
fn plain(bytes: &[u8]) -> String {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some((&byte, after)) = rest.split_first() {
        rest = match (byte, after) {
            (0x1b, [b'[', sequence @ ..]) => {
                let end = sequence.iter().position(|b| (0x40..=0x7e).contains(b));
                end.map_or(&[][..], |end| &sequence[end + 1..])
            }
            (0x1b, after) => {
                let final_byte = after.iter().position(|b| !(0x20..=0x2f).contains(b));
                final_byte.map_or(&[][..], |at| &after[at + 1..])
            }
            (b'\n' | b'\t' | 0x20.., after) => {
                out.push(byte);
                after
            }
            (_, after) => after,
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn log(text: &[u8]) -> (tempfile::NamedTempFile, Console) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        let console = Console::new(file.path(), 0);
        (file, console)
    }

    #[test]
    fn control_sequences_do_not_hide_text() {
        assert_eq!(plain(b"\x1b[2J\x1b[01;01HBds\x1b[0mDxe: start\r\n\x1b)0ok"), "BdsDxe: start\nok");
    }

    #[test]
    fn finds_the_earliest_and_goes_on_after_it() {
        let (mut file, mut console) = log(b"one\r\ntwo three\r\n");
        assert_eq!(console.find(&["three", "two"]).unwrap(), Some((1, "two three".into())));
        assert_eq!(console.find(&["two"]).unwrap(), None, "a match is used once");
        file.write_all(b"two again\n").unwrap();
        assert_eq!(console.find(&["two"]).unwrap(), Some((0, "two again".into())));
    }

    #[test]
    fn the_rest_of_a_line_is_there_when_it_has_ended() {
        let (mut file, mut console) = log(b"init: STOPPED. No sl");
        assert_eq!(console.find(&["STOPPED"]).unwrap(), Some((0, "init: STOPPED. No sl".into())));
        assert_eq!(console.rest_of_line().unwrap(), None);
        file.write_all(b"ot.\r\nmore").unwrap();
        assert_eq!(console.rest_of_line().unwrap(), Some(". No slot.".into()));
    }

    #[test]
    fn a_sequence_torn_between_two_reads_stays_one() {
        let (mut file, mut console) = log(b"ab\x1b[01");
        assert_eq!(console.find(&["abc"]).unwrap(), None);
        file.write_all(b";02Hc").unwrap();
        assert_eq!(console.find(&["abc"]).unwrap(), Some((0, "abc".into())));
    }

    #[test]
    fn the_tail_is_forty_lines() {
        let text: String = (0..100).map(|n| format!("line {n}\n\n")).collect();
        let (_file, console) = log(text.as_bytes());
        assert_eq!(console.tail().lines().count(), 41);
        assert!(console.tail().contains("line 60") && !console.tail().contains("line 59\n"));
    }

    #[test]
    fn a_log_that_is_not_there_yet_is_silence() {
        let mut console = Console::new("/nonexistent/serial.log", 0);
        assert_eq!(console.find(&["x"]).unwrap(), None);
        assert!(console.tail().starts_with("no console log"));
    }
}
