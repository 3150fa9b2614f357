//! Postgres' files, written from the register before each start: what the server finds in its directory decides nothing.
//!
//! Pure: text from values. PostgreSQL documentation, chapters 20 (configuration) and 27 (high availability).

use crate::ha::message::StandbyName;
use crate::ha::register::VoterId;
use crate::ha::want::Names;
use anyhow::{Result, bail};
use std::collections::BTreeMap;
use std::path::Path;

/// The agent's own database user.
pub const OWNER: &str = "farhold";
/// The database that the agent itself connects to.
pub const CONTROL: &str = "postgres";
/// Log that is kept for an absent standby before it must be copied anew.
const SLOT_MAX: &str = "1GB";

/// Settings that the pair's safety rests on: nobody else may set them.
const RESERVED: [&str; 25] = [
    "archive_cleanup_command",
    "client_connection_check_interval",
    "config_file",
    "data_directory",
    "fsync",
    "full_page_writes",
    "hba_file",
    "hot_standby",
    "ident_file",
    "include",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "recovery_target_timeline",
    "restart_after_crash",
    "restore_command",
    "synchronous_commit",
    "synchronous_standby_names",
    "unix_socket_directories",
    "unix_socket_permissions",
    "wal_level",
    "wal_log_hints",
    "wal_sync_method",
    "zero_damaged_pages",
];

/// What one start needs.
pub struct Role<'a> {
    /// Folder of the server's socket; nobody but the agent's user may enter it.
    pub sockets: &'a Path,
    /// File of the access rules.
    pub access: &'a Path,
    /// What commits wait for.
    pub names: Names,
    /// A standby's name, and the folder of the tunnel's socket.
    pub follows: Option<(StandbyName, &'a Path)>,
    /// An operator's settings.
    pub extra: &'a BTreeMap<String, String>,
}

/// The name of a standby, as `application_name` and in `synchronous_standby_names`.
pub fn standby(name: StandbyName) -> String {
    format!("farhold_{:016x}_{}", name.node.0, name.pairing)
}

/// The slot of a standby, which outlives epochs.
pub fn slot(node: VoterId) -> String {
    format!("farhold_{:016x}", node.0)
}

/// Refuses settings that are not an operator's to choose.
///
/// # Errors
/// Which one, and why.
pub fn check_extra(extra: &BTreeMap<String, String>) -> Result<()> {
    for (name, value) in extra {
        let plain =
            name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == '.');
        if !plain || name.is_empty() || value.contains(['\n', '\r', '\0']) {
            bail!("postgres.settings.{name}: names are small letters, digits, underscores; values one line");
        }
        if RESERVED.contains(&name.as_str()) || name.starts_with("recovery_") {
            bail!("postgres.settings.{name} cannot be set: the pair's safety rests on it; remove it");
        }
        if name == "max_slot_wal_keep_size" && value.trim().starts_with('-') {
            bail!(
                "postgres.settings.{name} must have an end: the log kept for an absent node would fill the disk"
            );
        }
    }
    Ok(())
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// The main file.
pub fn main_file(role: &Role<'_>) -> String {
    let names = match role.names {
        Names::Off => String::new(),
        Names::Only(name) => format!("\"{}\"", standby(name)),
    };
    let (source, slot) = role.follows.map_or_else(Default::default, |(name, tunnel)| {
        let target = format!(
            "host={} port=5432 user={OWNER} application_name={} sslmode=disable gssencmode=disable",
            tunnel.display(),
            standby(name)
        );
        (target, slot(name.node))
    });
    let ours = [
        ("listen_addresses", ""),
        ("port", "5432"),
        ("unix_socket_directories", &role.sockets.display().to_string()),
        ("unix_socket_permissions", "0700"),
        ("hba_file", &role.access.display().to_string()),
        ("synchronous_standby_names", &names),
        ("synchronous_commit", "on"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("wal_level", "replica"),
        ("wal_log_hints", "on"),
        ("hot_standby", "on"),
        ("restart_after_crash", "off"),
        ("client_connection_check_interval", "0"),
        ("recovery_target_timeline", "latest"),
        ("primary_conninfo", &source),
        ("primary_slot_name", &slot),
        ("wal_sender_timeout", "5s"),
        ("wal_receiver_timeout", "5s"),
        ("wal_receiver_status_interval", "1s"),
        ("wal_retrieve_retry_interval", "200ms"),
        ("lc_messages", "C"),
    ];
    let given = [
        ("max_connections", "200"),
        ("max_slot_wal_keep_size", SLOT_MAX),
        ("wal_keep_size", "128MB"),
        ("log_line_prefix", "postgres: "),
    ];
    let defaults = given.into_iter().filter(|(name, _)| !role.extra.contains_key(*name));
    let extra = role.extra.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let lines =
        defaults.chain(extra).chain(ours).map(|(name, value)| format!("{name} = {}\n", quoted(value)));
    ["# Written by farhold-agent before each start and on each change.\n".to_owned()]
        .into_iter()
        .chain(lines)
        .collect()
}

/// The access rules: the socket's folder is the agent's alone, and the agent looks at every session before it passes it on.
pub fn access_file(database: &str) -> String {
    format!(
        "# Written by farhold-agent.\nlocal {database} {database} scram-sha-256\nlocal all {OWNER} trust\n\
         local replication {OWNER} trust\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_conninfo_follow_the_role() {
        let name = StandbyName { node: VoterId(0xb), pairing: 7 };
        let extra = BTreeMap::from([("shared_buffers".to_owned(), "it's".to_owned())]);
        let mut role = Role {
            sockets: Path::new("/run/x"),
            access: Path::new("/run/hba"),
            names: Names::Only(name),
            follows: None,
            extra: &extra,
        };
        let primary = main_file(&role);
        assert!(
            primary.contains("synchronous_standby_names = '\"farhold_000000000000000b_7\"'\n"),
            "{primary}"
        );
        assert!(
            primary.contains("primary_conninfo = ''\n") && primary.contains("shared_buffers = 'it''s'\n")
        );
        (role.names, role.follows) = (Names::Off, Some((name, Path::new("/run/t"))));
        let standby = main_file(&role);
        assert!(standby.contains("synchronous_standby_names = ''\n"));
        assert!(
            standby
                .contains("host=/run/t port=5432 user=farhold application_name=farhold_000000000000000b_7 ")
        );
    }

    #[test]
    fn settings_that_safety_rests_on_cannot_be_given() {
        let one =
            |name: &str, value: &str| check_extra(&BTreeMap::from([(name.to_owned(), value.to_owned())]));
        assert!(one("shared_buffers", "64MB").is_ok());
        for name in ["fsync", "synchronous_commit", "recovery_target_lsn", "Fsync", ""] {
            assert!(one(name, "off").is_err(), "{name}");
        }
        assert!(one("shared_buffers", "1\nfsync = off").is_err());
        assert!(
            one("max_slot_wal_keep_size", "200MB").is_ok() && one("max_slot_wal_keep_size", " -1").is_err()
        );
    }
}
