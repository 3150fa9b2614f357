//! Sockets that others call. One that cannot be accepted now, as without free file descriptors, is waited for without
//! spinning: everything else of the pair runs on the same thread.

use anyhow::{Context, Result};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

/// Between two attempts to accept.
const PAUSE: Duration = Duration::from_millis(100);

/// A local socket in place of one that an earlier process left.
///
/// # Errors
/// If it cannot be made.
pub fn socket(path: &Path) -> Result<UnixListener> {
    if path.exists() {
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    UnixListener::bind(path).with_context(|| format!("listen on {}", path.display()))
}

/// The next local caller.
pub async fn local(listener: &UnixListener) -> UnixStream {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return stream,
            Err(error) => pause(&error).await,
        }
    }
}

/// The next caller of the network, and where it calls from.
pub async fn remote(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok(caller) => return caller,
            Err(error) => pause(&error).await,
        }
    }
}

async fn pause(error: &std::io::Error) {
    tracing::debug!(%error, "a caller was not accepted");
    tokio::time::sleep(PAUSE).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn callers_are_taken_in_place_of_what_an_earlier_process_left() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(socket(&path).unwrap());
        let listener = socket(&path).unwrap();
        let caller = UnixStream::connect(&path).await.unwrap();
        let taken = local(&listener).await;
        assert_eq!(taken.peer_cred().unwrap().pid(), caller.peer_cred().unwrap().pid());
    }
}
