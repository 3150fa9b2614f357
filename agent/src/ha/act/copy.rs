//! Making a database directory a copy of the holder's: export what only it has, then rewind, or copy everything.
//!
//! It does not know which of these is due (`super::super::lead`). PostgreSQL documentation: pg_rewind, pg_basebackup, pg_waldump.

use super::control_file;
use super::server;
use super::session;
use super::settings::{self, CONTROL, OWNER, Role};
use super::site::Site;
use crate::clock::boot_ms;
use crate::durable;
use crate::ha::state::{Copying, Event};
use crate::ha::want::{Names, nobody};
use anyhow::{Context, Result, bail, ensure};
use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::time::{Instant, sleep};
use tokio_postgres::SimpleQueryMessage;

/// How long the holder may take to answer, over any link.
const REMOTE: Duration = Duration::from_secs(20);
/// How long recovery before an export may take.
const RECOVERY: Duration = Duration::from_secs(300);

/// Does one step, once the server is down, and reports how it ended.
pub async fn run(site: Rc<Site>, how: Copying) {
    while site.server_runs.get() {
        sleep(Duration::from_millis(20)).await;
    }
    let free = server::clear(&site.config.postgres.data).await;
    let done = match (free, how) {
        (Err(error), _) => Err(error),
        (Ok(()), Copying::Export) => export(&site).await,
        (Ok(()), Copying::Rewind) => rewind(&site).await,
        (Ok(()), Copying::Reseed) => reseed(&site).await,
    };
    if done.is_ok() {
        site.watch.works("copy");
    }
    let event = match (done, how) {
        (Ok(()), Copying::Export) => Event::Exported,
        (Ok(()), Copying::Rewind | Copying::Reseed) => Event::Copied,
        (Err(error), _) => {
            let error = format!("{error:#}");
            tracing::warn!(?how, error, "the database was not brought to the holder's state");
            site.watch.trouble("copy", error);
            sleep(Duration::from_secs(1)).await;
            Event::CopyFailed
        }
    };
    site.report(event).await;
}

/// A copier that writes to a slow disk is silent for longer than a standby may be: the holder gives it more time.
fn source(site: &Site) -> String {
    format!(
        "host={} port=5432 user={OWNER} dbname={CONTROL} sslmode=disable gssencmode=disable \
         options=-cwal_sender_timeout=5min",
        site.copy_sockets().display()
    )
}

async fn rewind(site: &Site) -> Result<()> {
    let client = session::connect_within(&site.copy_sockets(), CONTROL, REMOTE).await;
    let client = client.context("reach the holder's database")?;
    client.simple_query("CHECKPOINT").await.context("checkpoint on the holder")?;
    let data = site.config.postgres.data.display().to_string();
    let (source, file) = (source(site), site.main_file().display().to_string());
    server::write_files(site, crate::ha::want::Postgres::Stopped)?;
    let args = ["--target-pgdata", &data, "--source-server", &source, "--config-file", &file];
    copier(site, "pg_rewind", &args).await?;
    tracing::info!("the database was rewound to the holder's");
    Ok(())
}

async fn reseed(site: &Site) -> Result<()> {
    let data = &site.config.postgres.data;
    durable::make_folder(data, 0o700)?;
    for entry in std::fs::read_dir(data).with_context(|| format!("read {}", data.display()))? {
        let path = entry?.path();
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.with_context(|| format!("remove {}", path.display()))?;
    }
    let (target, source) = (data.display().to_string(), source(site));
    tracing::info!("copying the whole database from the holder");
    let args = ["-D", &target, "-d", &source, "-X", "stream", "-c", "fast", "--status-interval=1"];
    copier(site, "pg_basebackup", &args).await?;
    tracing::info!("the whole database was copied from the holder");
    Ok(())
}

/// Takes the progress out of the status, also where the job is cancelled.
struct Shown<'a>(&'a Site);

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        self.0.watch.note_copy(boot_ms(), None);
    }
}

/// Runs a program of Postgres that copies: how far it is goes to the status, what else it says into errors.
async fn copier(site: &Site, name: &str, args: &[&str]) -> Result<()> {
    let path = site.config.postgres.bin.join(name);
    let mut command = tokio::process::Command::new(&path);
    command.args(args).arg("--progress").env("LC_ALL", "C").kill_on_drop(true);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start {}", path.display()))?;
    let mut lines = BufReader::new(child.stderr.take().context("hear the copier")?).split(b'\n');
    let (shown, mut last) = (Shown(site), VecDeque::new());
    while let Some(line) = lines.next_segment().await.context("hear the copier")? {
        let line = String::from_utf8_lossy(&line).into_owned();
        match progress(&line) {
            Some(sent) => site.watch.note_copy(boot_ms(), Some(sent)),
            None => last.push_back(line),
        }
        last.drain(..last.len().saturating_sub(3));
    }
    let ended = child.wait().await.context("look after the copier")?;
    drop(shown);
    let said = last.into_iter().collect::<Vec<_>>().join(" | ");
    ensure!(ended.success(), "`{name}` ended with {ended}: {said}");
    Ok(())
}

/// Bytes so far and in all, from ` 1234/30853 kB (4%)…`.
fn progress(line: &str) -> Option<(u64, u64)> {
    let (done, rest) = line.trim_start().split_once('/')?;
    let (total, _) = rest.split_once(" kB")?;
    let bytes = |kib: &str| kib.trim().parse::<u64>().ok()?.checked_mul(1024);
    Some((bytes(done)?, bytes(total)?))
}

/// Writes rows that were committed here after the peer went on alone to a report. The server is started for nobody else.
async fn export(site: &Site) -> Result<()> {
    let data = &site.config.postgres.data;
    if !data.join("global/pg_control").exists() {
        return Ok(());
    }
    let control = control_file::read(site, data).await?;
    let Some(register) = site.register() else { return Ok(()) };
    ensure!(control.system_id == register.system_id, "the directory holds another database");
    let folder = site.config.state.join("exports");
    durable::make_folder(&folder, 0o700)?;
    let sockets = site.config.run.join("export");
    durable::make_folder(&sockets, 0o700)?;
    let main = site.config.state.join("export.conf");
    let access = site.config.state.join("export_hba.conf");
    durable::replace(&access, format!("local all {OWNER} trust\n").as_bytes(), 0o600)?;
    let extra = BTreeMap::new();
    let names = Names::Only(nobody(site.voter()));
    let role = Role { sockets: &sockets, access: &access, names, follows: None, extra: &extra };
    durable::replace(&main, settings::main_file(&role).as_bytes(), 0o600)?;
    for name in ["standby.signal", "recovery.signal"] {
        if data.join(name).exists() {
            std::fs::remove_file(data.join(name)).with_context(|| format!("remove {name}"))?;
        }
    }
    let mut child = server::spawn(site, data, &main)?;
    let read = tokio::select! {
        read = read_rows(site, &sockets, register.start_lsn, control) => read,
        ended = child.wait() => bail!("the server of the export ended with {}", ended.context("look after it")?),
    };
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGINT)
            .context("stop the server of the export")?;
    }
    child.wait().await.context("stop the server of the export")?;
    let report = read.unwrap_or_else(|error| format!("# not readable: {error:#}\n"));
    let path = folder.join(format!("epoch-{}.jsonl", register.epoch));
    durable::write(&path, report.as_bytes(), 0o600)?;
    tracing::info!(path = %path.display(), bytes = report.len(), "rows that only this node may have had are exported");
    Ok(())
}

async fn read_rows(site: &Site, sockets: &Path, from: u64, control: control_file::Control) -> Result<String> {
    let until = Instant::now() + RECOVERY;
    let client = loop {
        match session::connect(sockets, &site.config.postgres.database).await {
            Ok(client) => break client,
            Err(error) if Instant::now() > until => return Err(error),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    };
    let folder = site.config.postgres.data.join("pg_wal");
    let names = std::fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let names: Vec<String> = names.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    let (start, whole) = log_start(&names, from, control.timeline).context("there is no log to read")?;
    let (log, timeline) = (folder.display().to_string(), control.timeline.to_string());
    let position = format!("{:X}/{:X}", start >> 32, start & 0xffff_ffff);
    let args = ["-p", &log, "-s", &position, "-t", &timeline, "-r", "Transaction"];
    // pg_waldump ends with an error at the end of the log, after it has printed everything before.
    let path = site.config.postgres.bin.join("pg_waldump");
    let output = tokio::process::Command::new(&path).args(args).env("LC_ALL", "C").output().await;
    let output = output.with_context(|| format!("start {}", path.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    let read =
        output.status.success() || said.contains("invalid record length") || said.contains("could not find");
    ensure!(read || !output.stdout.is_empty(), "`pg_waldump` ended with {}: {}", output.status, said.trim());
    let committed = committed(&String::from_utf8_lossy(&output.stdout));
    let mut report = format!("# {} transactions were committed here from {position} on\n", committed.len());
    if !whole {
        report += "# where the other node's rows begin to differ is not known: all that the kept log has; \
                   rows that the other node also has may be among them\n";
    }
    if committed.is_empty() {
        return Ok(report);
    }
    let tables = "SELECT format('%I.%I', schemaname, relname) FROM pg_stat_user_tables ORDER BY 1";
    for table in column(&client, tables).await? {
        let query = format!(
            "SELECT to_jsonb(t) FROM {table} t WHERE xmin::text = ANY('{{{}}}')",
            committed.join(",")
        );
        for row in column(&client, &query).await? {
            writeln!(report, "{{\"table\":{},\"row\":{row}}}", serde_json::to_string(&table)?)?;
        }
    }
    Ok(report)
}

/// Where reading begins, and whether that is where the histories part: the position itself if its segment (16 MiB, named
/// after timeline and position) is there, else the oldest segment that is.
fn log_start(names: &[String], from: u64, timeline: u32) -> Option<(u64, bool)> {
    let segment = |name: &String| {
        let number = |at: usize| u32::from_str_radix(name.get(at..at + 8)?, 16).ok();
        let plain = name.len() == 24 && number(0)? == timeline && number(16)? < 256;
        plain.then_some(u64::from(number(8)?) << 32 | u64::from(number(16)?) << 24)
    };
    let segments: Vec<u64> = names.iter().filter_map(segment).collect();
    if from != 0 && segments.contains(&(from >> 24 << 24)) {
        return Some((from, true));
    }
    segments.into_iter().min().map(|oldest| (oldest, false))
}

/// Transactions that `pg_waldump` shows as committed.
fn committed(text: &str) -> Vec<String> {
    let number = |line: &str| {
        let after = line.split_once("tx:")?.1.trim_start();
        let digits: String = after.chars().take_while(char::is_ascii_digit).collect();
        (!digits.is_empty() && line.contains("COMMIT")).then_some(digits)
    };
    text.lines().filter_map(number).collect()
}

async fn column(client: &tokio_postgres::Client, query: &str) -> Result<Vec<String>> {
    let messages = client.simple_query(query).await.with_context(|| format!("ask Postgres `{query}`"))?;
    let text = |message| {
        let SimpleQueryMessage::Row(row) = message else { return None };
        row.get(0).map(str::to_owned)
    };
    Ok(messages.into_iter().filter_map(text).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reading_begins_at_the_position_or_with_the_oldest_segment() {
        let names =
            ["000000020000000000000003", "000000020000000100000002", "00000002.history", "archive_status"];
        let names = names.map(str::to_owned);
        assert_eq!(log_start(&names, 0x0300_0123, 2), Some((0x0300_0123, true)));
        assert_eq!(log_start(&names, 0x0100_0123, 2), Some((0x0300_0000, false)));
        assert_eq!(log_start(&names, 0, 2), Some((0x0300_0000, false)));
        assert_eq!(log_start(&names, 0x0300_0123, 3), None);
    }

    #[test]
    fn progress_is_read_and_other_words_are_not() {
        assert_eq!(progress("  1024/30853 kB (3%), 0/1 tablespace"), Some((1 << 20, 30853 << 10)));
        assert_eq!(progress("30853/30853 kB (100%) copied"), Some((30853 << 10, 30853 << 10)));
        for other in ["", "pg_rewind: servers diverged at WAL location 0/3000000 on timeline 1", "1/x kB"] {
            assert_eq!(progress(other), None, "{other}");
        }
    }

    #[test]
    fn commits_are_found_in_the_log() {
        let text = "rmgr: Transaction len (rec/tot):     34/    34, tx:        745, lsn: 0/0304B0B8, prev 0/0304B080, \
                    desc: COMMIT 2026-01-01 00:00:00.0 UTC\n\
                    rmgr: Transaction len (rec/tot):     34/    34, tx:        746, lsn: 0/0304B0E0, prev 0/0304B0B8, \
                    desc: ABORT 2026-01-01 00:00:00.0 UTC\n";
        assert_eq!(committed(text), ["745"]);
        assert!(committed("garbage").is_empty());
    }
}
