//! Opens the database, whatever became of it: it is never deleted, and the agent runs without it if it must.

use super::{FILE, Fault, Store, salvage, schema};
use crate::io::durable;
use anyhow::{Context, Result};
use rusqlite::{Connection, OpenFlags};
use std::path::{Path, PathBuf};

/// How the database was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// Readable and writable.
    Ready,
    /// It was damaged: moved aside, and a new one has what could be read.
    Salvaged {
        /// Where the damaged one is.
        aside: PathBuf,
        /// Rows that were kept.
        rows: u64,
        /// SQLite's words.
        why: String,
    },
    /// A later agent wrote it: only read, so that going forward again finds it whole.
    Newer {
        /// Its version.
        found: u32,
        /// The newest that this agent knows.
        known: u32,
    },
    /// Can only be read.
    ReadOnly {
        /// Why.
        why: String,
    },
    /// There is no room; it is only read.
    Full {
        /// Why.
        why: String,
    },
    /// Cannot even be read.
    Unavailable {
        /// Why.
        why: String,
    },
}

/// Opens or makes the database in `folder`. Never fails: the condition says what works.
pub fn open(folder: &Path) -> (Option<Store>, Condition) {
    match open_writable(folder) {
        Ok((store, condition)) => (Some(store), condition),
        Err(error) => {
            let why = format!("{error:#}");
            let fault = fault_of(&error);
            let Ok(store) = open_for_reading(folder) else { return (None, Condition::Unavailable { why }) };
            let condition = match fault {
                Some(Fault::Full) => Condition::Full { why },
                Some(Fault::ReadOnly | Fault::Other | Fault::Corrupt) | None => Condition::ReadOnly { why },
            };
            (Some(store), condition)
        }
    }
}

fn fault_of(error: &anyhow::Error) -> Option<Fault> {
    let io = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
    match io {
        Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded) => Some(Fault::Full),
        Some(_) => Some(Fault::Other),
        None => error.downcast_ref::<rusqlite::Error>().map(Fault::of),
    }
}

fn open_writable(folder: &Path) -> Result<(Store, Condition)> {
    durable::make_folder(folder, 0o700)?;
    salvage::finish_interrupted(folder)?;
    let path = folder.join(FILE);
    match connect(&path) {
        Ok(opened) => Ok(opened),
        Err(error) if fault_of(&error) == Some(Fault::Corrupt) => {
            let (aside, rows) = salvage::replace(folder)?;
            let (store, _) = connect(&path)?;
            Ok((store, Condition::Salvaged { aside, rows, why: format!("{error:#}") }))
        }
        Err(error) => Err(error),
    }
}

fn connect(path: &Path) -> Result<(Store, Condition)> {
    let what = || format!("open {}", path.display());
    let mut connection = Connection::open(path).with_context(what)?;
    // The agent is the only writer. Exclusive locking also spares the shared-memory file, which a full disk refuses.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE").with_context(what)?;
    let found = schema::version(&connection).with_context(what)?;
    if found > schema::newest() {
        drop(connection);
        let folder = path.parent().unwrap_or(Path::new("."));
        return Ok((open_for_reading(folder)?, Condition::Newer { found, known: schema::newest() }));
    }
    connection.pragma_update(None, "journal_mode", "WAL").with_context(what)?;
    connection.pragma_update(None, "synchronous", "FULL").with_context(what)?;
    connection.pragma_update(None, "foreign_keys", true).with_context(what)?;
    let verdict: String =
        connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).with_context(what)?;
    if verdict != "ok" {
        let code = rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT);
        return Err(rusqlite::Error::SqliteFailure(code, Some(verdict))).with_context(what);
    }
    schema::migrate(&mut connection).with_context(what)?;
    let store = Store { connection };
    store.load().with_context(|| format!("read {}", path.display()))?;
    Ok((store, Condition::Ready))
}

/// Opens an existing database without writing anything beside it.
///
/// # Errors
/// If it is not there or cannot be read.
pub fn open_for_reading(folder: &Path) -> Result<Store> {
    let path = folder.join(FILE);
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let plain = Connection::open_with_flags(&path, flags).map(|connection| Store { connection });
    let readable = plain.and_then(|store| store.load().map(|_| store));
    readable.or_else(|_| immutable(&path)).with_context(|| format!("open {} to read it", path.display()))
}

/// A write-ahead log needs a writable folder even to be read; without one, what stands in the file itself is read.
pub(super) fn immutable(path: &Path) -> rusqlite::Result<Store> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_URI | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let escaped = path.to_string_lossy().replace('%', "%25").replace('?', "%3f").replace('#', "%23");
    let connection = Connection::open_with_flags(format!("file:{escaped}?immutable=1"), flags)?;
    let store = Store { connection };
    store.load()?;
    Ok(store)
}
