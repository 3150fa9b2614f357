//! Reads YAML files into types; errors name file, line and column and keep to one line.

use crate::finding::Finding;
use serde::de::DeserializeOwned;
use std::fs;
use std::path::Path;

/// Largest file that is read; profiles and packs are a few kilobytes.
const LIMIT: u64 = 4 << 20;

/// Reads a text file of bounded length.
///
/// # Errors
/// A finding that names the file.
pub fn text(path: &Path) -> Result<String, Finding> {
    let place = path.display().to_string();
    let length = fs::metadata(path).map(|meta| meta.len());
    match length.and_then(|length| if length > LIMIT { Ok(None) } else { fs::read_to_string(path).map(Some) })
    {
        Ok(Some(text)) => Ok(text),
        Ok(None) => {
            Err(Finding::error(place, format!("larger than {} MiB", LIMIT >> 20), "is this the right file?"))
        }
        Err(error) => Err(Finding::error(place, format!("cannot be read: {error}"), "check the path")),
    }
}

/// Reads a YAML file.
///
/// # Errors
/// A finding that names file, line and column.
pub fn load<T: DeserializeOwned>(path: &Path) -> Result<T, Finding> {
    parse(&text(path)?, &path.display().to_string())
}

/// Reads YAML text; `name` stands for the file in errors.
///
/// # Errors
/// A finding that names line and column.
pub fn parse<T: DeserializeOwned>(text: &str, name: &str) -> Result<T, Finding> {
    serde_saphyr::from_str(text).map_err(|error| {
        let place = match error.location() {
            Some(at) => format!("{name}:{}:{}", at.line(), at.column()),
            None => name.to_owned(),
        };
        let full = error.without_snippet().to_string();
        let message = full.lines().next().unwrap_or_default();
        // The location stands in `place` already.
        let message = message.split_once(" at line ").map_or(message, |(head, _)| head);
        let message = message.strip_prefix("error: ").unwrap_or(message);
        Finding::error(
            place,
            message.trim_end_matches([':', ' ']),
            "correct the file; editors show it with the published schema",
        )
    })
}
