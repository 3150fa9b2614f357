//! The database server's process: started, stopped, promoted towards the role that is wanted, and watched.
//!
//! Each start is preceded by a report that the server is down, with its files written anew. It does not know why a role is
//! wanted, and it never restarts a server by itself.

use super::control_file;
use super::session::{self, PATIENCE};
use super::settings::{self, CONTROL, Role};
use super::site::Site;
use super::timeline;
use crate::clock::boot_ms;
use crate::durable;
use crate::ha::state::{Event, Server};
use crate::ha::want::{Names, Postgres, Tunnel};
use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::rc::Rc;
use std::time::Duration;
use tokio::process::{Child, Command};
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, timeout};
use tokio_postgres::Client;

/// Between two looks at the server.
const LOOK: Duration = Duration::from_millis(50);
/// A server that has not stopped in good order after this long is stopped at once.
const STOP: Duration = Duration::from_secs(8);
/// Between two looks at a copy that is made from here, milliseconds.
const PROGRESS_MS: u64 = 500;
/// Between two looks at the slot of an absent standby, which Postgres lets go of when it holds too much, milliseconds.
const SLOT_MS: u64 = 2_000;
/// After a failed start.
const PAUSE: Duration = Duration::from_secs(1);

/// The server's process, if it runs, and a session with it.
struct Process {
    site: Rc<Site>,
    child: Option<Child>,
    client: Option<Client>,
    role: Option<Postgres>,
    slot_for: Option<crate::ha::message::StandbyName>,
    slot_at: u64,
    recovering: bool,
    progress_at: u64,
}

/// A program of Postgres, with its output in errors.
///
/// # Errors
/// If it cannot be started or fails.
pub async fn tool(site: &Site, name: &str, args: &[&str]) -> Result<String> {
    let path = site.config.postgres.bin.join(name);
    let output = Command::new(&path)
        .args(args)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("start {}", path.display()))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(3).collect();
    bail!("`{name}` ended with {}: {}", output.status, last.into_iter().rev().collect::<Vec<_>>().join(" | "))
}

/// The process that has a directory, as its lock file says.
fn owner(data: &Path) -> Option<i32> {
    std::fs::read_to_string(data.join("postmaster.pid")).ok()?.lines().next()?.parse().ok()
}

/// Processes that work in this directory: by their folder, which may be read only where both have the same rights, or by the
/// arguments of a server, which everybody may read. One that is overlooked would share the directory with the next.
fn at_work(data: &Path) -> Result<Vec<Pid>> {
    let given = data.as_os_str().as_bytes();
    let data = data.canonicalize().with_context(|| format!("find {}", data.display()))?;
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("look for servers")? {
        let path = entry.context("look for servers")?.path();
        let pid = path.file_name().and_then(|name| name.to_str()?.parse::<i32>().ok());
        let there = || std::fs::read_link(path.join("cwd")).is_ok_and(|folder| folder == data);
        let named = || {
            let words = std::fs::read(path.join("cmdline")).unwrap_or_default();
            let words: Vec<&[u8]> = words.split(|byte| *byte == 0).collect();
            words.windows(2).any(|pair| pair[0] == b"-D" && pair[1] == given)
                && words[0].ends_with(b"postgres")
        };
        found.extend(pid.filter(|_| there() || named()).map(Pid::from_raw));
    }
    Ok(found)
}

/// Ends whatever still works in this directory before a server is started there: one of an earlier agent, or what is left of one that
/// was killed. Then nobody holds its lock, whose number may be that of another process by now, at which Postgres would refuse to start.
///
/// # Errors
/// If it does not go away.
pub async fn clear(data: &Path) -> Result<()> {
    let lock = data.join("postmaster.pid");
    if !lock.exists() {
        return Ok(());
    }
    for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
        let until = Instant::now() + STOP;
        for pid in at_work(data)? {
            match kill(pid, signal) {
                Ok(()) | Err(nix::Error::ESRCH) => {}
                Err(error) => return Err(error).context("stop the server that was left behind"),
            }
        }
        while !at_work(data)?.is_empty() && Instant::now() < until {
            sleep(LOOK).await;
        }
    }
    if let Some(pid) = at_work(data)?.first() {
        bail!("what is left of an earlier server (process {pid}) on {} does not end", data.display());
    }
    match std::fs::remove_file(&lock) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", lock.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Moves the server towards the wanted role until the agent ends.
pub async fn supervise(site: Rc<Site>) {
    let mut process = Process {
        site,
        child: None,
        client: None,
        role: None,
        slot_for: None,
        slot_at: 0,
        recovering: false,
        progress_at: 0,
    };
    loop {
        match process.turn().await {
            Ok(()) => process.site.watch.works("server"),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::warn!(error, "the database server is not as it should be");
                process.site.watch.trouble("server", error);
                sleep(PAUSE).await;
            }
        }
        tokio::select! {
            () = sleep(LOOK) => {}
            () = process.site.server_wanted.notified() => {}
        }
    }
}

impl Process {
    async fn turn(&mut self) -> Result<()> {
        self.reap().await?;
        let want = self.site.postgres.get();
        match (want, self.child.is_some()) {
            (Postgres::Stopped, false) => {}
            (Postgres::Stopped, true) => self.stop().await?,
            (Postgres::Standby { .. }, true) if !self.recovering => self.stop().await?,
            (Postgres::Primary { .. } | Postgres::Standby { .. }, false) => self.start(want).await?,
            (Postgres::Standby { .. }, true) if self.role != Some(want) => self.write(want, true)?,
            (Postgres::Primary { .. } | Postgres::Standby { .. }, true) => {}
        }
        if self.child.is_some() {
            self.look(want).await?;
        }
        Ok(())
    }

    /// Notices that the server ended, and says so before anything else is done.
    async fn reap(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        let Some(status) = child.try_wait().context("look after Postgres")? else { return Ok(()) };
        tracing::info!(%status, "Postgres ended");
        self.gone().await
    }

    async fn gone(&mut self) -> Result<()> {
        (self.child, self.client, self.slot_for, self.role) = (None, None, None, None);
        self.site.server_pid.set(None);
        self.site.server_runs.set(false);
        self.report_down().await
    }

    async fn report_down(&self) -> Result<()> {
        let data = &self.site.config.postgres.data;
        if !data.join("global/pg_control").exists() {
            return Ok(());
        }
        let control = control_file::read(&self.site, data).await?;
        let server = Server::Down { end: control.end };
        self.site.report(Event::Postgres { system_id: control.system_id, server }).await;
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else { return Ok(()) };
        self.client = None;
        for signal in [Signal::SIGINT, Signal::SIGQUIT, Signal::SIGKILL] {
            let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) else { break };
            kill(Pid::from_raw(pid), signal).context("stop Postgres")?;
            if timeout(STOP, child.wait()).await.is_ok() {
                break;
            }
            tracing::warn!(?signal, "Postgres did not stop in time");
        }
        self.gone().await
    }

    async fn start(&mut self, want: Postgres) -> Result<()> {
        // Said first: whoever waits for a directory without a server must not begin in the middle of this.
        self.site.server_runs.set(true);
        let started = self.try_start(want).await;
        self.site.server_runs.set(self.child.is_some());
        started
    }

    async fn try_start(&mut self, want: Postgres) -> Result<()> {
        self.report_down().await?;
        // The report may have changed what is wanted.
        if self.site.postgres.get() != want {
            return Ok(());
        }
        let data = self.site.config.postgres.data.clone();
        let control = control_file::read(&self.site, &data).await?;
        self.recovering = match want {
            Postgres::Standby { .. } => true,
            Postgres::Primary { timeline, .. } => control.timeline < timeline,
            Postgres::Stopped => return Ok(()),
        };
        for name in ["standby.signal", "recovery.signal"] {
            let path = data.join(name);
            if path.exists() {
                std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
            }
        }
        if self.recovering {
            durable::replace(&data.join("standby.signal"), b"", 0o600)?;
        }
        durable::replace(&data.join("postgresql.auto.conf"), b"# The agent's files decide.\n", 0o600)?;
        self.write(want, false)?;
        if self.recovering {
            timeline::give_back(&data.join("pg_wal"), control.timeline)?;
            timeline::complete(&data.join("pg_wal"), control.timeline)?;
        }
        clear(&data).await?;
        let child = spawn(&self.site, &data, &self.site.main_file())?;
        self.site.server_pid.set(child.id().and_then(|pid| i32::try_from(pid).ok()));
        self.child = Some(child);
        tracing::info!(?want, recovering = self.recovering, "Postgres started");
        Ok(())
    }

    /// Writes the server's files; the names of a start are never empty.
    fn write(&mut self, want: Postgres, running: bool) -> Result<()> {
        let start_names = match want {
            Postgres::Primary { start_names, .. } => Some(start_names),
            Postgres::Standby { .. } | Postgres::Stopped => None,
        };
        if let Some(names) = start_names {
            self.site.names.set(Names::Only(names));
        }
        self.role = Some(want);
        write_files(&self.site, want)?;
        if running { reload(&self.site) } else { Ok(()) }
    }

    async fn look(&mut self, want: Postgres) -> Result<()> {
        let client = match self.client.take() {
            Some(client) if !client.is_closed() => client,
            // Somebody else's server may answer at the socket; what it says is not ours.
            Some(_) | None if owner(&self.site.config.postgres.data) != self.site.server_pid.get() => {
                return Ok(());
            }
            // A server that is starting refuses sessions; that is no news.
            Some(_) | None => match session::connect(&self.site.sockets(), CONTROL).await {
                Ok(client) => client,
                // One that takes the session and says nothing is stuck.
                Err(error) if error.is::<Elapsed>() => {
                    self.report(Server::Stuck).await;
                    return Ok(());
                }
                Err(_) => return self.help_recovery(want).await,
            },
        };
        let seen = timeout(2 * PATIENCE, session::look(&client, self.site.standby_name())).await;
        let server = match seen {
            Ok(Ok(server)) => server,
            Ok(Err(_)) | Err(_) => Server::Stuck,
        };
        self.recovering =
            matches!(server, Server::Standby { .. }) || (self.recovering && server == Server::Stuck);
        if let (Server::Primary { standby, .. }, Tunnel::Serve { name, .. }) =
            (server, self.site.tunnel.get())
            && (self.slot_for != Some(name) || (standby.is_none() && boot_ms() >= self.slot_at))
        {
            timeout(PATIENCE, session::ensure_slot(&client, name)).await.context("the server is stuck")??;
            (self.slot_for, self.slot_at) = (Some(name), boot_ms() + SLOT_MS);
        }
        if let Server::Primary { lsn, standby, .. } = server {
            self.site.watch.note_log(boot_ms(), lsn, standby.map(|standby| standby.lsn));
            if boot_ms() >= self.progress_at {
                self.progress_at = boot_ms() + PROGRESS_MS;
                // Whether the server is stuck is asked above; this one is for show.
                let sent = session::copy_progress(&client).await.unwrap_or_default();
                self.site.watch.note_copy(boot_ms(), sent);
            }
        }
        self.report(server).await;
        if let (Server::Primary { timeline: on, .. }, Postgres::Primary { timeline: wanted, .. }) =
            (server, want)
            && on < wanted
        {
            // Promoted on a number that the register gave to another's promotion: that is done again.
            tracing::warn!(on, wanted, "Postgres writes a timeline that is not its own");
            return self.stop().await;
        }
        if server == Server::Stuck {
            return Ok(());
        }
        self.promote(want, &client).await?;
        self.client = Some(client);
        Ok(())
    }

    /// A standby that is to be the primary, but does not even come to a consistent state, may lack what it can have from itself.
    async fn help_recovery(&mut self, want: Postgres) -> Result<()> {
        if !self.recovering || !matches!(want, Postgres::Primary { .. }) || self.role == Some(want) {
            return Ok(());
        }
        self.write(want, true)?;
        let data = &self.site.config.postgres.data;
        let control = control_file::read(&self.site, data).await?;
        timeline::complete(&data.join("pg_wal"), control.timeline)?;
        Ok(())
    }

    /// The running server's directory was compared with the register before the start.
    async fn report(&self, server: Server) {
        let system_id = self.site.system_id.get();
        self.site.report(Event::Postgres { system_id, server }).await;
    }

    async fn promote(&mut self, want: Postgres, client: &Client) -> Result<()> {
        let Postgres::Primary { timeline: wanted, .. } = want else { return Ok(()) };
        if self.site.postgres.get() != want || !self.recovering {
            return Ok(());
        }
        self.write(want, true)?;
        let data = &self.site.config.postgres.data;
        timeline::reserve(
            &data.join("pg_wal"),
            control_file::read(&self.site, data).await?.timeline,
            wanted,
        )?;
        client.simple_query("SELECT pg_promote(true, 30)").await.context("promote Postgres")?;
        self.recovering = false;
        tracing::info!("Postgres promoted");
        Ok(())
    }
}

/// Writes main file and access rules for this role and the names that are wanted now. They are written before each start, so they are
/// not flushed: on a slow disk that would keep the loop from speaking to the peer.
///
/// # Errors
/// The file system's.
pub fn write_files(site: &Site, want: Postgres) -> Result<()> {
    let (sockets, tunnel) = (site.sockets(), site.tunnel_sockets());
    let access = site.config.state.join("pg_hba.conf");
    durable::replace(&access, settings::access_file(&site.config.postgres.database).as_bytes(), 0o600)?;
    let follows = match want {
        Postgres::Standby { name } => Some((name, tunnel.as_path())),
        Postgres::Primary { .. } | Postgres::Stopped => None,
    };
    let role = Role {
        sockets: &sockets,
        access: &access,
        names: site.names.get(),
        follows,
        extra: &site.config.postgres.settings,
    };
    durable::replace(&site.main_file(), settings::main_file(&role).as_bytes(), 0o600)
}

/// Has a running server read its files.
///
/// # Errors
/// If it cannot be told.
pub fn reload(site: &Site) -> Result<()> {
    let Some(pid) = site.server_pid.get() else { return Ok(()) };
    kill(Pid::from_raw(pid), Signal::SIGHUP).context("have Postgres read its files")
}

/// Starts a server on a directory with this main file.
///
/// # Errors
/// If the program cannot be started.
pub fn spawn(site: &Site, data: &Path, file: &Path) -> Result<Child> {
    let path: PathBuf = site.config.postgres.bin.join("postgres");
    Command::new(&path)
        .arg("-D")
        .arg(data)
        .arg(format!("--config_file={}", file.display()))
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", path.display()))
}
