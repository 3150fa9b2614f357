//! What a database directory says of itself while its server is down: `global/pg_control`, as `pg_controldata` shows it.
//!
//! It does not know what that decides. PostgreSQL documentation: pg_controldata.

use super::server;
use super::site::Site;
use crate::ha::register::Lsn;
use anyhow::{Context, Result, bail};
use std::path::Path;

/// What `pg_controldata` says of a directory whose server is down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Control {
    /// The database's own number.
    pub system_id: u64,
    /// The timeline of its log.
    pub timeline: u32,
    /// End of the log after a clean stop as primary.
    pub end: Option<Lsn>,
}

/// Reads a directory whose server is down.
///
/// # Errors
/// If it is no database.
pub async fn read(site: &Site, data: &Path) -> Result<Control> {
    check_version(site, data)?;
    let text = server::tool(site, "pg_controldata", &["-D", &data.display().to_string()]).await?;
    parse(&text)
}

/// A directory of another major version is not touched.
fn check_version(site: &Site, data: &Path) -> Result<()> {
    let path = data.join("PG_VERSION");
    let made = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    let (made, ours) = (made.trim(), site.platform.postgres_major.to_string());
    if made != ours {
        bail!(
            "the database in {} was made by Postgres {made}, but this node has {ours}: nothing was changed; give the node \
             Postgres {made} again, or move the directory away and have it copied anew",
            data.display()
        );
    }
    Ok(())
}

fn parse(text: &str) -> Result<Control> {
    let value = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        line.and_then(|line| line.split_once(':')).map(|(_, value)| value.trim())
    };
    let number = |name: &str| value(name).and_then(|value| value.parse::<u32>().ok());
    let system_id = value("Database system identifier").and_then(|value| value.parse().ok());
    let checkpoint = number("Latest checkpoint's TimeLineID").context("pg_controldata says no timeline")?;
    let recovery = number("Min recovery ending loc's timeline").unwrap_or(0);
    let end = value("Latest checkpoint location").and_then(position);
    Ok(Control {
        system_id: system_id.context("pg_controldata says no system identifier")?,
        timeline: checkpoint.max(recovery),
        // The checkpoint of the stop is the last record; whoever has its first byte has all that was committed.
        end: end.filter(|_| value("Database cluster state") == Some("shut down")).map(|lsn| lsn + 1),
    })
}

/// `1/2A` as a number.
pub fn position(text: &str) -> Option<Lsn> {
    let (high, low) = text.split_once('/')?;
    Some(u64::from_str_radix(high, 16).ok()? << 32 | u64::from_str_radix(low, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPPED: &str = "pg_control version number:            1300\n\
        Database system identifier:           7300000000000000001\n\
        Database cluster state:               shut down\n\
        Latest checkpoint location:           1/3000028\n\
        Latest checkpoint's TimeLineID:       2\n\
        Min recovery ending loc's timeline:   0\n";

    #[test]
    fn the_end_of_the_log_is_known_only_after_a_clean_stop() {
        let control = parse(STOPPED).unwrap();
        assert_eq!((control.system_id, control.timeline), (7_300_000_000_000_000_001, 2));
        assert_eq!(control.end, Some((1 << 32) + 0x300_0029));
        let crashed = STOPPED.replace("shut down", "in production").replace("timeline:   0", "timeline:   3");
        let control = parse(&crashed).unwrap();
        assert_eq!((control.timeline, control.end), (3, None));
        let standby = STOPPED.replace("shut down", "shut down in recovery");
        assert_eq!(parse(&standby).unwrap().end, None);
        assert!(parse("").is_err());
    }
}
