//! Hands what the journal holds on to the other node of the pair: read-only, bounded, verified once more.

use super::Peer;
use super::talk::{Answer, File, REQUEST_MAX, Request, Runs, hear, say};
use crate::io::clock::boot_ms;
use crate::update::shelf::Shelf;
use anyhow::{Context, Result};
use std::fs::Permissions;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Conversations at once: a transfer of the other node has one.
const CONVERSATIONS: usize = 4;
/// Pieces for one request.
const PIECES_MAX: u64 = 4096;
/// Pieces that one claim may have.
pub const CLAIM_MAX: usize = 4096;
/// How long the other node may say nothing.
const QUIET: Duration = Duration::from_secs(60);
const STACK: usize = 256 << 10;

/// Listens on a socket that only the owner of `like` may use.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen(socket: &Path, like: &Path) -> Result<UnixListener> {
    if let Some(folder) = socket.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    }
    // One that an earlier agent left.
    drop(std::fs::remove_file(socket));
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let owner = std::fs::metadata(like).with_context(|| format!("look at {}", like.display()))?;
    std::fs::set_permissions(socket, Permissions::from_mode(0o600))
        .and_then(|()| chown(socket, Some(owner.uid()), Some(owner.gid())))
        .with_context(|| format!("give {} to the pair's user", socket.display()))?;
    Ok(listener)
}

/// Answers on threads of its own.
///
/// # Errors
/// If there are none to be had.
pub fn start(peer: Arc<Peer>, listener: UnixListener) -> Result<()> {
    let open = Arc::new(AtomicUsize::new(0));
    let run = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                std::thread::sleep(Duration::from_millis(100));
                continue;
            };
            if open.fetch_add(1, Ordering::Relaxed) >= CONVERSATIONS {
                open.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let (peer, ended) = (peer.clone(), open.clone());
            let answer = move || {
                if let Err(error) = serve(&peer, stream) {
                    tracing::debug!(error = format!("{error:#}"), "the other node has ended a transfer");
                }
                ended.fetch_sub(1, Ordering::Relaxed);
            };
            if std::thread::Builder::new().name("peer".into()).stack_size(STACK).spawn(answer).is_err() {
                open.fetch_sub(1, Ordering::Relaxed);
            }
        }
    };
    std::thread::Builder::new()
        .name("peers".into())
        .stack_size(STACK)
        .spawn(run)
        .context("start a thread")?;
    Ok(())
}

fn serve(peer: &Peer, mut stream: UnixStream) -> Result<()> {
    stream.set_read_timeout(Some(QUIET)).and_then(|()| stream.set_write_timeout(Some(QUIET)))?;
    let mut shelf = None;
    loop {
        match hear(&mut stream, REQUEST_MAX)? {
            Request::Ask { file, token, claims } => {
                // What is staged may have changed since.
                shelf = open(peer, &file);
                let answer = ask(peer, &file, shelf.as_ref(), (token, &claims));
                say(&mut stream, &answer)?;
            }
            Request::Get { file, from, to } => {
                let fits = shelf.as_ref().filter(|shelf| fits(shelf, &file));
                for index in (from..to).take(PIECES_MAX as usize) {
                    let piece = fits.and_then(|shelf| shelf.read(file.what(), index));
                    let Some(bytes) = piece else { break };
                    say(&mut stream, &Answer::Piece(index, bytes))?;
                }
                say(&mut stream, &Answer::End)?;
            }
        }
    }
}

fn fits(shelf: &Shelf, file: &File) -> bool {
    shelf.is(file.object()) && shelf.shape(file.what()) == (file.length, file.piece)
}

fn open(peer: &Peer, file: &File) -> Option<Shelf> {
    Shelf::open(&peer.staged, file.object()).filter(|shelf| fits(shelf, file))
}

fn ask(peer: &Peer, file: &File, shelf: Option<&Shelf>, (token, claims): (u64, &Runs)) -> Answer {
    let what = file.what();
    let has = Runs::of(shelf.map(|shelf| shelf.has(what)).unwrap_or_default());
    let pieces = claims.pieces(file.length.div_ceil(u64::from(file.piece.max(1))), CLAIM_MAX);
    let (wanted, granted) = {
        let mut claims = peer.claims();
        let granted = claims.asked(what, token, &pieces, boot_ms());
        (claims.wanted(what), Runs::of(granted))
    };
    if !wanted && shelf.is_none() {
        peer.heard_of(file.object());
    }
    Answer::Has { wanted, has, granted }
}
