//! What the agent asks its own Postgres: what it does, a slot, a canary.
//!
//! Sessions go over the server's own socket, never through the port. It does not decide what an answer means.

use super::settings::{CONTROL, OWNER, slot, standby};
use crate::ha::message::{Flushed, StandbyName};
use crate::ha::register::Lsn;
use crate::ha::state::Server;
use anyhow::{Context, Result, bail};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

/// How long an answer may take before the server counts as stuck.
pub const PATIENCE: Duration = Duration::from_secs(2);

/// Connects as the agent's user.
///
/// # Errors
/// If the server does not take the session.
pub async fn connect(sockets: &Path, database: &str) -> Result<Client> {
    connect_within(sockets, database, PATIENCE).await
}

/// The same with a server that may be on the other node, behind a slow link.
///
/// # Errors
/// If the server does not take the session in time.
pub async fn connect_within(sockets: &Path, database: &str, patience: Duration) -> Result<Client> {
    let mut config = tokio_postgres::Config::new();
    config.host_path(sockets).port(5432).user(OWNER).dbname(database).application_name("farhold-agent");
    config.connect_timeout(patience);
    let (client, connection) =
        timeout(patience, config.connect(NoTls)).await.context("the server is stuck")??;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a session with Postgres ended");
        }
    });
    Ok(client)
}

/// The first row of a query, as texts.
///
/// # Errors
/// The server's.
pub async fn row(client: &Client, query: &str) -> Result<Vec<Option<String>>> {
    let messages = client.simple_query(query).await.with_context(|| format!("ask Postgres `{query}`"))?;
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            return Ok((0..row.len()).map(|at| row.get(at).map(str::to_owned)).collect());
        }
    }
    bail!("ask Postgres `{query}`: no row")
}

/// What the server does now; `name` is the standby's name that counts.
///
/// # Errors
/// If it does not answer in time.
pub async fn look(client: &Client, name: Option<StandbyName>) -> Result<Server> {
    let shown = name.map(standby).unwrap_or_default();
    let query = format!(
        "SELECT CASE WHEN pg_is_in_recovery() THEN \
           coalesce(greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn()), '0/0') \
         ELSE pg_current_wal_flush_lsn() END - '0/0'::pg_lsn, \
         CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint()) \
         ELSE ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int END, \
         pg_is_in_recovery(), \
         (SELECT max(flush_lsn - '0/0'::pg_lsn) FROM pg_stat_replication \
          WHERE application_name = '{shown}' AND state = 'streaming')"
    );
    let row = timeout(PATIENCE, row(client, &query)).await.context("the server is stuck")??;
    let number = |at: usize| row.get(at).and_then(Option::as_deref).and_then(|text| text.parse::<u64>().ok());
    let lsn = number(0).context("a position is no number")?;
    let timeline =
        u32::try_from(number(1).context("a timeline is no number")?).context("a timeline is too long")?;
    if row.get(2).and_then(Option::as_deref) == Some("t") {
        return Ok(Server::Standby { timeline, lsn });
    }
    let standby = name.zip(number(3)).map(|(name, lsn)| Flushed { name, lsn });
    Ok(Server::Primary { timeline, lsn, standby })
}

/// How far a full copy from here is: bytes sent, bytes in all as Postgres estimates them.
///
/// # Errors
/// The server's.
pub async fn copy_progress(client: &Client) -> Result<Option<(u64, u64)>> {
    let query =
        "SELECT sum(backup_streamed)::bigint, sum(backup_total)::bigint FROM pg_stat_progress_basebackup";
    let row = timeout(PATIENCE, row(client, query)).await.context("the server is stuck")??;
    let number = |at: usize| row.get(at).and_then(Option::as_deref).and_then(|text| text.parse::<u64>().ok());
    Ok(number(0).zip(number(1)))
}

/// Makes the standby's slot, and lets go of slots of others.
///
/// # Errors
/// The server's.
pub async fn ensure_slot(client: &Client, name: StandbyName) -> Result<()> {
    let wanted = slot(name.node);
    let lost = format!(
        "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
         WHERE NOT active AND NOT temporary AND (slot_name <> '{wanted}' OR wal_status = 'lost')"
    );
    client.simple_query(&lost).await.context("let go of slots")?;
    let make = format!(
        "SELECT pg_create_physical_replication_slot('{wanted}', true) \
         WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{wanted}')"
    );
    client.simple_query(&make).await.context("make the standby's slot")?;
    Ok(())
}

/// What was seen of a canary.
pub enum Seen {
    /// Its backend waits for a standby; the flushed log ended here after that was seen.
    Waits(Lsn),
    /// It was committed.
    Done,
}

/// Commits something of no meaning and tells what is seen, until it is committed. Dropping this leaves a backend that waits:
/// it is never cancelled, because a cancelled wait ends as a commit.
///
/// # Errors
/// If a session breaks.
pub async fn canary(sockets: &Path, mut tell: impl AsyncFnMut(Seen)) -> Result<()> {
    let (writer, watcher) = (connect(sockets, CONTROL).await?, connect(sockets, CONTROL).await?);
    let pid =
        row(&writer, "SELECT pg_backend_pid()").await?.into_iter().next().flatten().context("no pid")?;
    let commit = writer.simple_query("SELECT pg_logical_emit_message(true, 'farhold', 'canary')");
    tokio::pin!(commit);
    let waits = format!("SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND wait_event = 'SyncRep'");
    let mut told = false;
    loop {
        tokio::select! {
            done = &mut commit => {
                done.context("commit the canary")?;
                tell(Seen::Done).await;
                return Ok(());
            }
            () = tokio::time::sleep(Duration::from_millis(15)), if !told => {}
        }
        let seen = row(&watcher, &waits).await?;
        if seen.first().and_then(Option::as_deref) == Some("1") {
            let lsn = row(&watcher, "SELECT pg_current_wal_flush_lsn() - '0/0'::pg_lsn").await?;
            let lsn = lsn.first().and_then(Option::as_deref).and_then(|text| text.parse().ok());
            told = true;
            tell(Seen::Waits(lsn.context("a position is no number")?)).await;
        }
    }
}
