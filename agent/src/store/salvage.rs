//! Keeps what can be read of a damaged database. The damaged file itself is moved aside, never deleted.
//!
//! Order: a new file is filled and flushed under another name; then the damaged one is renamed; then the new one takes
//! its place. A power cut in between is finished by the next start.

use super::{FILE, schema};
use crate::io::durable;
use anyhow::{Context, Result, ensure};
use rusqlite::types::Value;
use rusqlite::{Connection, OpenFlags, params_from_iter};
use std::fs;
use std::path::{Path, PathBuf};

const SALVAGED: &str = "agent.db.salvaged";
/// Damaged files that are kept side by side before the agent stops making more.
const ASIDE_MAX: u32 = 100;

/// Ends a salvage that a power cut interrupted: without a database, the filled new file takes its place.
///
/// # Errors
/// The file system's.
pub fn finish_interrupted(folder: &Path) -> Result<()> {
    let (path, salvaged) = (folder.join(FILE), folder.join(SALVAGED));
    if !salvaged.exists() {
        return Ok(());
    }
    if path.exists() {
        // The damaged one still stands, so the new one may be half filled; it is filled again.
        fs::remove_file(&salvaged).with_context(|| format!("remove {}", salvaged.display()))
    } else {
        fs::rename(&salvaged, &path).with_context(|| format!("rename {}", salvaged.display()))?;
        durable::sync_folder(folder)
    }
}

/// Replaces the damaged database; returns where it is now and how many rows the new one has.
///
/// # Errors
/// The file system's or SQLite's; the damaged file then stands where it was, or aside.
pub fn replace(folder: &Path) -> Result<(PathBuf, u64)> {
    let (path, salvaged) = (folder.join(FILE), folder.join(SALVAGED));
    let rows = fill(&path, &salvaged).with_context(|| format!("salvage {}", path.display()))?;
    let aside = free_name(folder)?;
    for suffix in ["-wal", "-shm"] {
        let log = folder.join(format!("{FILE}{suffix}"));
        if log.exists() {
            let to = PathBuf::from(format!("{}{suffix}", aside.display()));
            fs::rename(&log, &to).with_context(|| format!("move {} aside", log.display()))?;
        }
    }
    fs::rename(&path, &aside).with_context(|| format!("move {} aside", path.display()))?;
    fs::rename(&salvaged, &path).with_context(|| format!("rename {}", salvaged.display()))?;
    durable::sync_folder(folder)?;
    Ok((aside, rows))
}

fn free_name(folder: &Path) -> Result<PathBuf> {
    let name = |n| folder.join(format!("{FILE}.corrupt-{n}"));
    let free = (1..=ASIDE_MAX).map(name).find(|path| !path.exists());
    let free = free
        .with_context(|| format!("{ASIDE_MAX} damaged databases are kept already in {}", folder.display()))?;
    ensure!(!free.exists(), "{} exists", free.display());
    Ok(free)
}

/// A new, flushed database with every row of the damaged one that can be read.
fn fill(damaged: &Path, new: &Path) -> Result<u64> {
    let mut target = Connection::open(new)?;
    target.pragma_update(None, "synchronous", "FULL")?;
    schema::migrate(&mut target)?;
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut rows = 0;
    // A file whose first page is gone opens, but shows no table: nothing is kept of it then.
    if let Ok(source) = Connection::open_with_flags(damaged, flags) {
        let transaction = target.transaction()?;
        for (table, columns) in schema::TABLES {
            // From both ends: a damaged page in the middle then costs only itself.
            for order in ["ASC", "DESC"] {
                rows += copy(&source, &transaction, (table, columns), order);
            }
        }
        transaction.commit()?;
    }
    target.close().map_err(|(_, error)| error)?;
    Ok(rows)
}

/// Copies rows until the first that cannot be read; returns how many are new.
fn copy(from: &Connection, to: &Connection, (table, columns): (&str, &str), order: &str) -> u64 {
    let marks = vec!["?"; columns.split(',').count()].join(", ");
    let insert = format!("INSERT OR IGNORE INTO {table} ({columns}) VALUES ({marks})");
    let mut copied = 0;
    let mut attempt = || -> rusqlite::Result<()> {
        let mut query = from.prepare(&format!("SELECT {columns} FROM {table} ORDER BY rowid {order}"))?;
        let mut rows = query.query([])?;
        while let Some(row) = rows.next()? {
            let values = (0..columns.split(',').count()).map(|at| row.get(at));
            let values: Vec<Value> = values.collect::<rusqlite::Result<_>>()?;
            // A row that no longer fits its table is damage too, and does not stop the others.
            if let Ok(inserted) = to.execute(&insert, params_from_iter(values)) {
                copied += inserted as u64;
            }
        }
        Ok(())
    };
    if let Err(error) = attempt() {
        tracing::debug!(table, order, error = %error, "rows beyond this one cannot be read");
    }
    copied
}
