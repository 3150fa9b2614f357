//! What passes between the two nodes: replication, copies, and clients of the port of the node that is not primary.
//!
//! A standby reaches its source only through here, and here only under the name of this epoch: closing it is the fence.
//! It does not know when it is open; that is the decisions' `Tunnel`.

use super::filter::Filter;
use super::gate::{Gate, Pass, Verdict};
use super::listen;
use super::relay::{Sink, Source, both, pump};
use super::settings;
use super::site::Site;
use super::startup::{First, Session, parse};
use super::stream::{self, Purpose, Reader, Writer};
use crate::ha::port::Port;
use crate::ha::state::{Copying, Event};
use crate::ha::want::{Task, Tunnel};
use anyhow::{Context, Result, bail, ensure};
use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::time::Instant;

/// Streams that ended at once, one after the other, until the log counts as gone.
const SHORT_MAX: u32 = 10;
/// Postgres has greeted the standby when this many bytes came; less is a server that is only starting.
const GREETED: u64 = 300;

/// Answers the other node until the agent ends.
pub async fn serve(site: Rc<Site>, listener: TcpListener) {
    loop {
        let (tcp, from) = listen::remote(&listener).await;
        let site = Rc::clone(&site);
        tokio::task::spawn_local(async move {
            if let Err(error) = answer(&site, tcp).await {
                tracing::debug!(%from, error = format!("{error:#}"), "a stream of the other node ended");
            }
        });
    }
}

async fn answer(site: &Rc<Site>, tcp: TcpStream) -> Result<()> {
    let (ends, _) = site.peer_ends().context("there is no peer")?;
    let (purpose, mut reader, writer) = stream::accept(&ends, site.peer_session.get(), tcp).await?;
    if purpose == Purpose::Blocks {
        let local = UnixStream::connect(&site.config.blocks).await.context("reach this node's agent")?;
        return pass_on(local, reader, writer).await;
    }
    let Some(first) = reader.read().await? else { return Ok(()) };
    let packet = first.to_vec();
    let Some(Ok(First::Session(session))) = packet.get(4..).map(parse) else { bail!("no startup packet") };
    match purpose {
        Purpose::Replicate(name) => {
            let pass = site.tunnel_gate.pass();
            let serving = |site: &Site| match site.tunnel.get() {
                Tunnel::Serve { name: served, withhold } if served == name => Some(withhold),
                Tunnel::Serve { .. } | Tunnel::Follow { .. } | Tunnel::Closed => None,
            };
            ensure!(serving(site).is_some(), "replication under this name is not served");
            refused(session.check_standby(&settings::standby(name)))?;
            let acknowledgements = || match serving(site) {
                Some(false) => Verdict::Go,
                Some(true) => Verdict::Wait,
                None => Verdict::Stop,
            };
            let log = || if serving(site).is_some() { Verdict::Go } else { Verdict::Stop };
            join(site, (packet, reader, writer), &pass, (&acknowledgements, &log), None).await
        }
        Purpose::Copy => {
            let pass = site.tunnel_gate.pass();
            let serves = || {
                if matches!(site.tunnel.get(), Tunnel::Serve { .. }) { Verdict::Go } else { Verdict::Stop }
            };
            ensure!(serves() == Verdict::Go, "nothing is copied from here now");
            refused(session.check_copy())?;
            join(site, (packet, reader, writer), &pass, (&serves, &serves), None).await
        }
        Purpose::Client(epoch) => client(site, epoch, &session, (packet, reader, writer)).await,
        Purpose::Blocks => bail!("blocks are passed on above"),
    }
}

/// Takes the agent of this node to that of the other. It has no part in who is primary: nothing cuts it but its ends.
pub async fn blocks(site: Rc<Site>, listener: UnixListener) {
    loop {
        let local = listen::local(&listener).await;
        let site = Rc::clone(&site);
        tokio::task::spawn_local(async move {
            let reached = async {
                let (ends, addresses) = site.peer_ends().context("there is no peer")?;
                stream::connect(&ends, &addresses, Purpose::Blocks).await
            };
            let done = match reached.await {
                Ok((reader, writer)) => pass_on(local, reader, writer).await,
                Err(error) => Err(error),
            };
            if let Err(error) = done {
                tracing::debug!(error = format!("{error:#}"), "a stream of blocks ended");
            }
        });
    }
}

async fn pass_on(local: UnixStream, reader: Reader, writer: Writer) -> Result<()> {
    let (read, write) = local.into_split();
    let gate = Rc::new(Gate::default());
    let (pass, go) = (gate.pass(), || Verdict::Go);
    let forth = pump(Source::Plain(Box::new(read)), Sink::Sealed(writer), &pass, &go, None);
    let back = pump(Source::Sealed(reader), Sink::Plain(Box::new(write)), &pass, &go, None);
    both(forth, back, &pass).await
}

async fn client(
    site: &Rc<Site>,
    epoch: u64,
    session: &Session,
    parts: (Vec<u8>, Reader, Writer),
) -> Result<()> {
    let pass = site.port_gate.pass();
    let serves = || if site.forward() == Port::Local { Verdict::Go } else { Verdict::Stop };
    ensure!(
        serves() == Verdict::Go && site.epoch() == Some(epoch),
        "this node is not the primary of that epoch"
    );
    refused(session.check_client(&site.config.postgres.database))?;
    join(site, parts, &pass, (&serves, &serves), Some(Filter::default())).await
}

fn refused(checked: Result<(), &'static str>) -> Result<()> {
    checked.or_else(|problem| bail!(problem))
}

/// Joins a stream of the other node with the server here.
async fn join(
    site: &Site,
    (packet, reader, writer): (Vec<u8>, Reader, Writer),
    pass: &Pass,
    (inward, outward): (&dyn Fn() -> Verdict, &dyn Fn() -> Verdict),
    filter: Option<Filter>,
) -> Result<()> {
    let mut server = UnixStream::connect(site.server_socket()).await.context("connect to Postgres")?;
    server.write_all(&packet).await?;
    let (read, write) = server.into_split();
    let forth = pump(Source::Sealed(reader), Sink::Plain(Box::new(write)), pass, inward, filter);
    let back = pump(Source::Plain(Box::new(read)), Sink::Sealed(writer), pass, outward, None);
    both(forth, back, pass).await
}

/// Takes the standby's walreceiver, and nothing while the tunnel is not followed.
pub async fn follow(site: Rc<Site>, listener: UnixListener) {
    let short = Rc::new(Cell::new(0));
    loop {
        let local = listen::local(&listener).await;
        let (site, short) = (Rc::clone(&site), Rc::clone(&short));
        tokio::task::spawn_local(async move {
            let Tunnel::Follow { name } = site.tunnel.get() else { return };
            let pass = site.tunnel_gate.pass();
            let (began, received) = (Instant::now(), Cell::new(0));
            let verdict = || match site.tunnel.get() {
                Tunnel::Follow { name: used } if used == name => Verdict::Go,
                Tunnel::Follow { .. } | Tunnel::Serve { .. } | Tunnel::Closed => Verdict::Stop,
            };
            let done = outward(&site, local, Purpose::Replicate(name), &pass, (&verdict, &received)).await;
            if let Err(error) = done {
                tracing::debug!(error = format!("{error:#}"), "replication ended");
            }
            // Greeted and sent away, again and again: the source has no log for this standby.
            let sent_away =
                pass.holds() && received.get() > GREETED && began.elapsed() < Duration::from_secs(2);
            short.set(if sent_away { short.get() + 1 } else { 0 });
            if short.get() >= SHORT_MAX {
                short.set(0);
                site.report(Event::StreamGone).await;
            }
        });
    }
}

/// Takes `pg_basebackup` and `pg_rewind`, and nothing while no copy is made.
pub async fn fetch(site: Rc<Site>, listener: UnixListener) {
    loop {
        let local = listen::local(&listener).await;
        let site = Rc::clone(&site);
        tokio::task::spawn_local(async move {
            let copies = |site: &Site| match site.task.get() {
                Task::Copy { how: Copying::Rewind | Copying::Reseed, .. } => Verdict::Go,
                Task::Copy { how: Copying::Export, .. } | Task::Canary { .. } | Task::Rest => Verdict::Stop,
            };
            let (pass, received) = (site.copy_gate.pass(), Cell::new(0));
            let verdict = || copies(&site);
            if verdict() == Verdict::Stop {
                return;
            }
            if let Err(error) = outward(&site, local, Purpose::Copy, &pass, (&verdict, &received)).await {
                tracing::debug!(error = format!("{error:#}"), "a stream of a copy ended");
            }
        });
    }
}

async fn outward(
    site: &Site,
    mut local: UnixStream,
    purpose: Purpose,
    pass: &Pass,
    (verdict, received): (&dyn Fn() -> Verdict, &Cell<u64>),
) -> Result<()> {
    let packet = startup(&mut local).await?;
    let (ends, addresses) = site.peer_ends().context("there is no peer")?;
    let (reader, mut writer) = stream::connect(&ends, &addresses, purpose).await?;
    let ask = || if pass.holds() { verdict() } else { Verdict::Stop };
    writer.write(&packet, ask, || pass.changed()).await?;
    let (read, write) = local.into_split();
    let forth = pump(Source::Plain(Box::new(read)), Sink::Sealed(writer), pass, verdict, None);
    let back = pump(Source::Counted(reader, received), Sink::Plain(Box::new(write)), pass, verdict, None);
    both(forth, back, pass).await
}

async fn startup(local: &mut UnixStream) -> Result<Vec<u8>> {
    use tokio::io::AsyncReadExt;
    let length = usize::try_from(local.read_u32().await?).context("a length")?;
    ensure!((8..=super::startup::STARTUP_MAX).contains(&length), "a first packet of {length} bytes");
    let mut packet = vec![0; length];
    packet[..4].copy_from_slice(&[24, 16, 8, 0].map(|shift| (length >> shift & 0xff) as u8));
    local.read_exact(&mut packet[4..]).await?;
    Ok(packet)
}
