//! The agent's memory on the state partition: desired and observed state, boots, events, reports to send, in SQLite.
//!
//! `schema` has the numbered migrations, `open` decides what a damaged, newer, full or unwritable file leads to,
//! `salvage` keeps what can be read of a damaged one. Knows nothing of the loop; a record is durable when
//! [`Store::record`] returns.

mod open;
mod salvage;
mod schema;

pub use open::{Condition, open, open_for_reading};

use crate::update::state::Memory;
use formats::layout::Slot;
use formats::report::{Report, ReportBody, ReportId, Standing};
use formats::status::{Desired, EventLine, Observed};
use rusqlite::{Connection, ErrorCode, OptionalExtension, Transaction, params};

/// Name of the file in the state store.
pub const FILE: &str = "agent.db";
/// Events that are kept.
const EVENTS_KEPT: u32 = 1000;
/// Boots that are kept.
const BOOTS_KEPT: u32 = 200;
/// Reports that wait for a link at most; the oldest go first.
const OUTBOX_KEPT: u32 = 256;
/// Events that are read back.
const EVENTS_READ: u32 = 50;

/// Something to remember.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// This boot, once.
    Boot {
        /// `/proc/sys/kernel/random/boot_id`.
        boot_id: String,
        /// What it booted; `None` if the root is not Farhold's.
        observed: Option<Observed>,
        /// Whether systemd-boot counted it.
        trial: bool,
    },
    /// What runs.
    Observed(Observed),
    /// What is meant to run.
    Desired(Desired),
    /// Something that happened.
    Event(EventLine),
    /// What the update engine remembers.
    Update(Box<Memory>),
    /// How the device stands, to be reported; it takes the place of the one before.
    Standing(Box<Standing>),
    /// Receipts have come for these reports.
    Received(Vec<ReportId>),
}

/// What was remembered.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    /// What is meant to run.
    pub desired: Option<Desired>,
    /// What ran when the agent last wrote it down.
    pub observed: Option<Observed>,
    /// Latest events, newest first.
    pub events: Vec<EventLine>,
    /// Boots counted so far.
    pub boots: u64,
    /// What the update engine remembers.
    pub update: Memory,
}

/// What kind of failure a database error is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The file's contents are damaged.
    Corrupt,
    /// No room.
    Full,
    /// Cannot be written, but read.
    ReadOnly,
    /// Anything else: the device fails, or the file cannot be opened.
    Other,
}

impl Fault {
    /// Classifies an error.
    pub fn of(error: &rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Self::Corrupt,
            Some(ErrorCode::DiskFull) => Self::Full,
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => Self::ReadOnly,
            Some(_) => Self::Other,
            // A value of the wrong type in a typed column: only damage puts it there.
            None if matches!(
                error,
                rusqlite::Error::FromSqlConversionFailure(..)
                    | rusqlite::Error::InvalidColumnType(..)
                    | rusqlite::Error::IntegralValueOutOfRange(..)
                    | rusqlite::Error::Utf8Error(..)
            ) =>
            {
                Self::Corrupt
            }
            None => Self::Other,
        }
    }
}

/// An open database.
pub struct Store {
    connection: Connection,
}

impl Store {
    /// Writes records in one transaction; they are durable when this returns.
    ///
    /// # Errors
    /// SQLite's; nothing of `records` is then kept.
    pub fn record(&mut self, records: &[Record]) -> rusqlite::Result<()> {
        let transaction = self.connection.transaction()?;
        for record in records {
            write(&transaction, record)?;
        }
        transaction.execute(
            "DELETE FROM events WHERE seq <= (SELECT max(seq) FROM events) - ?1",
            params![EVENTS_KEPT],
        )?;
        transaction.execute(
            "DELETE FROM boots WHERE seq <= (SELECT max(seq) FROM boots) - ?1",
            params![BOOTS_KEPT],
        )?;
        transaction.execute(
            "DELETE FROM outbox WHERE number <= (SELECT max(number) FROM outbox) - ?1",
            params![OUTBOX_KEPT],
        )?;
        transaction.commit()
    }

    /// Reports that no receipt has come for, oldest first, at most `most`, as the device with this machine id sends them.
    ///
    /// # Errors
    /// SQLite's.
    pub fn outbox(&self, device: [u8; 16], most: u32) -> rusqlite::Result<Vec<(ReportId, Vec<u8>)>> {
        let db = &self.connection;
        if schema::version(db)? < 3 {
            return Ok(Vec::new());
        }
        let epoch: u32 =
            db.query_row("SELECT epoch FROM outbox_epoch", [], |row| row.get(0)).optional()?.unwrap_or(0);
        let mut query = db.prepare("SELECT number, report FROM outbox ORDER BY number LIMIT ?1")?;
        let rows = query.query_map(params![most], |row| {
            let id = ReportId { epoch, number: row.get(0)? };
            let bytes: Vec<u8> = row.get(1)?;
            let report = Report::parse(&bytes).map_err(|error| damaged(1, error.to_string()))?;
            Ok((id, Report { id, device, ..report }.encode()))
        })?;
        rows.collect()
    }

    /// Reads everything that the loop starts from.
    ///
    /// # Errors
    /// SQLite's.
    pub fn load(&self) -> rusqlite::Result<Loaded> {
        let db = &self.connection;
        let desired = db
            .query_row("SELECT version, roothash, source FROM desired", [], |row| {
                Ok(Desired { version: row.get(0)?, roothash: digest(row, 1)?, source: row.get(2)? })
            })
            .optional()?;
        let observed = db
            .query_row("SELECT slot, roothash, version, kernel FROM observed", [], |row| {
                let (slot, roothash) = (slot(row, 0)?, digest(row, 1)?);
                Ok(Observed { slot, roothash, version: row.get(2)?, kernel: row.get(3)? })
            })
            .optional()?;
        let mut query =
            db.prepare("SELECT boot_id, uptime_ms, code, text FROM events ORDER BY seq DESC LIMIT ?1")?;
        let events = query.query_map(params![EVENTS_READ], |row| {
            Ok(EventLine {
                boot_id: row.get(0)?,
                uptime_ms: row.get(1)?,
                code: row.get(2)?,
                text: row.get(3)?,
            })
        })?;
        let events = events.collect::<rusqlite::Result<_>>()?;
        let boots = db.query_row("SELECT coalesce(max(seq), 0) FROM boots", [], |row| row.get(0))?;
        Ok(Loaded { desired, observed, events, boots, update: update(db)? })
    }
}

/// A database that was salvaged may lack the row; one that an older agent wrote lacks the table.
fn update(db: &Connection) -> rusqlite::Result<Memory> {
    if schema::version(db)? < 2 {
        return Ok(Memory::default());
    }
    let row = db.query_row("SELECT json FROM update_memory", [], |row| row.get::<_, String>(0)).optional()?;
    let Some(text) = row else { return Ok(Memory::default()) };
    serde_json::from_str(&text).map_err(|error| damaged(0, format!("update_memory: {error}")))
}

fn write(db: &Transaction<'_>, record: &Record) -> rusqlite::Result<usize> {
    match record {
        Record::Boot { boot_id, observed, trial } => db.execute(
            "INSERT OR IGNORE INTO boots (boot_id, slot, roothash, version, trial) VALUES (?1, ?2, ?3, ?4, ?5)",
            params![
                boot_id,
                observed.as_ref().map(|o| o.slot.to_string()),
                observed.as_ref().map(|o| o.roothash.to_string()),
                observed.as_ref().map(|o| &o.version),
                trial
            ],
        ),
        Record::Observed(Observed { slot, roothash, version, kernel }) => db.execute(
            "INSERT OR REPLACE INTO observed (id, slot, roothash, version, kernel) VALUES (1, ?1, ?2, ?3, ?4)",
            params![slot.to_string(), roothash.to_string(), version, kernel],
        ),
        Record::Desired(Desired { version, roothash, source }) => db.execute(
            "INSERT OR REPLACE INTO desired (id, version, roothash, source) VALUES (1, ?1, ?2, ?3)",
            params![version, roothash.to_string(), source],
        ),
        Record::Event(EventLine { boot_id, uptime_ms, code, text }) => {
            let uptime_s = u32::try_from(uptime_ms / 1000).unwrap_or(u32::MAX);
            post(db, ReportBody::Event { uptime_s, code: code.clone(), text: text.clone() })?;
            db.execute(
                "INSERT INTO events (boot_id, uptime_ms, code, text) VALUES (?1, ?2, ?3, ?4)",
                params![boot_id, uptime_ms, code, text],
            )
        }
        Record::Standing(standing) => {
            db.execute("DELETE FROM outbox WHERE standing = 1", [])?;
            post(db, ReportBody::Status(standing.as_ref().clone()))
        }
        Record::Received(ids) => {
            let epoch: u32 = db.query_row("SELECT epoch FROM outbox_epoch", [], |row| row.get(0))?;
            let mut removed = 0;
            for id in ids.iter().filter(|id| id.epoch == epoch) {
                removed += db.execute("DELETE FROM outbox WHERE number = ?1", params![id.number])?;
            }
            Ok(removed)
        }
        Record::Update(memory) => {
            let text = serde_json::to_string(memory).map_err(|error| damaged(0, error.to_string()))?;
            db.execute("INSERT OR REPLACE INTO update_memory (id, json) VALUES (1, ?1)", params![text])
        }
    }
}

/// Puts a report into the outbox. Who sends it and which number it has is known when it is read.
fn post(db: &Transaction<'_>, body: ReportBody) -> rusqlite::Result<usize> {
    let standing = matches!(body, ReportBody::Status(_));
    let report = Report { id: ReportId::default(), device: [0; 16], body }.encode();
    db.execute("INSERT INTO outbox (standing, report) VALUES (?1, ?2)", params![standing, report])
}

fn digest(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<formats::hex::Digest> {
    let text: String = row.get(at)?;
    formats::hex::Digest::parse(&text).ok_or_else(|| damaged(at, format!("`{text}` is no digest")))
}

fn slot(row: &rusqlite::Row<'_>, at: usize) -> rusqlite::Result<Slot> {
    let text: String = row.get(at)?;
    let known = Slot::BOTH.into_iter().find(|slot| slot.to_string() == text);
    known.ok_or_else(|| damaged(at, format!("`{text}` is no slot")))
}

fn damaged(at: usize, what: String) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(at, rusqlite::types::Type::Text, what.into())
}

#[cfg(test)]
mod cuts;
#[cfg(test)]
mod tests;
