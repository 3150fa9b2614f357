//! The tables, as numbered migrations. `user_version` is the number of those that a file has seen; a migration that was
//! ever released is never edited, a new one is added.

use rusqlite::Connection;

/// The migrations in order.
pub const MIGRATIONS: [&str; 3] = [
    // 1: one row each of what should run and what runs; boots and events in order.
    "CREATE TABLE desired (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        version TEXT NOT NULL, roothash TEXT NOT NULL, source TEXT NOT NULL
     ) STRICT;
     CREATE TABLE observed (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        slot TEXT NOT NULL CHECK (slot IN ('a', 'b')),
        roothash TEXT NOT NULL, version TEXT NOT NULL, kernel TEXT NOT NULL
     ) STRICT;
     CREATE TABLE boots (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        boot_id TEXT NOT NULL UNIQUE,
        slot TEXT, roothash TEXT, version TEXT,
        trial INTEGER NOT NULL CHECK (trial IN (0, 1))
     ) STRICT;
     CREATE TABLE events (
        seq INTEGER PRIMARY KEY AUTOINCREMENT,
        boot_id TEXT NOT NULL,
        uptime_ms INTEGER NOT NULL,
        code TEXT NOT NULL, text TEXT NOT NULL
     ) STRICT;",
    // 2: what the update engine remembers, one JSON document.
    "CREATE TABLE update_memory (id INTEGER PRIMARY KEY CHECK (id = 1), json TEXT NOT NULL) STRICT;",
    // 3: reports that no receipt has come for. With the epoch their numbers are never used again, even in a new database.
    "CREATE TABLE outbox (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        standing INTEGER NOT NULL CHECK (standing IN (0, 1)),
        report BLOB NOT NULL
     ) STRICT;
     CREATE TABLE outbox_epoch (id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL) STRICT;
     INSERT INTO outbox_epoch VALUES (1, random() & 4294967295);",
];

/// Tables that a salvage copies, with their columns.
///
/// Not the epoch of the outbox: a new file counts its reports from the start, so it must have a new one.
pub const TABLES: [(&str, &str); 6] = [
    ("desired", "id, version, roothash, source"),
    ("observed", "id, slot, roothash, version, kernel"),
    ("boots", "seq, boot_id, slot, roothash, version, trial"),
    ("events", "seq, boot_id, uptime_ms, code, text"),
    ("update_memory", "id, json"),
    ("outbox", "number, standing, report"),
];

/// The version that this program writes.
pub const fn newest() -> u32 {
    MIGRATIONS.len() as u32
}

/// The version of a file.
///
/// # Errors
/// SQLite's.
pub fn version(db: &Connection) -> rusqlite::Result<u32> {
    db.query_row("PRAGMA user_version", [], |row| row.get(0))
}

/// Brings a file to [`newest`], each step with its number in one transaction.
///
/// # Errors
/// SQLite's; the file then has the version before the failed step.
pub fn migrate(db: &mut Connection) -> rusqlite::Result<()> {
    let seen = version(db)? as usize;
    for (number, migration) in (1u32..).zip(MIGRATIONS).skip(seen) {
        let transaction = db.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", number)?;
        transaction.commit()?;
    }
    Ok(())
}
