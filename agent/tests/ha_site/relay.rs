//! A slow link: datagrams and streams go on after a while. There is no `netem` here, so a process stands between the parties.
//! It can also say again and again what was said once.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Between two repetitions of something old.
const AGAIN: Duration = Duration::from_millis(10);
/// How many datagrams are kept for it.
const KEPT: usize = 2_000;

/// Runs until it is killed: `LISTEN,TARGET,MILLISECONDS,WHETHER TO REPEAT`.
pub async fn work(ways: &str) {
    let [listen, target, delay, replays] = *ways.split(',').collect::<Vec<_>>() else { panic!("{ways}") };
    let (listen, target): (SocketAddr, SocketAddr) = (listen.parse().unwrap(), target.parse().unwrap());
    let delay = Duration::from_millis(delay.parse().unwrap());
    let again = (replays == "true").then_some(AGAIN);
    tokio::join!(datagrams(listen, target, (delay, again)), streams(listen, target, delay));
}

/// There and back, each way late; answers go to whoever spoke last.
async fn datagrams(listen: SocketAddr, target: SocketAddr, (delay, again): (Duration, Option<Duration>)) {
    let near = UdpSocket::bind(listen).await.unwrap();
    let far = UdpSocket::bind(SocketAddr::new(listen.ip(), 0)).await.unwrap();
    let (mut asker, mut waiting) = (None, VecDeque::<(Instant, bool, Vec<u8>)>::new());
    let (mut there, mut back) = ([0; 2048], [0; 2048]);
    let (mut old, mut turn) = (Vec::<(bool, Vec<u8>)>::new(), 0);
    let mut repeat = tokio::time::interval(again.unwrap_or(Duration::from_secs(3600)));
    loop {
        let due = waiting.front().map_or_else(|| Instant::now() + Duration::from_secs(60), |(at, ..)| *at);
        tokio::select! {
            Ok((length, from)) = near.recv_from(&mut there) => {
                asker = Some(from);
                waiting.push_back((Instant::now() + delay, true, there[..length].to_vec()));
            }
            Ok((length, _)) = far.recv_from(&mut back) => {
                waiting.push_back((Instant::now() + delay, false, back[..length].to_vec()));
            }
            () = sleep_until(due) => if let Some((_, outward, bytes)) = waiting.pop_front() {
                // A datagram that nobody takes is lost, as on any link.
                drop(if outward { far.send_to(&bytes, target).await } else { near.send_to(&bytes, asker.unwrap()).await });
                if again.is_some() && old.len() < KEPT {
                    old.push((outward, bytes));
                }
            },
            _ = repeat.tick() => if !old.is_empty() {
                turn = (turn + 1) % old.len();
                let (outward, bytes) = &old[turn];
                drop(if *outward { far.send_to(bytes, target).await } else { near.send_to(bytes, asker.unwrap()).await });
            },
        }
    }
}

async fn streams(listen: SocketAddr, target: SocketAddr, delay: Duration) {
    let listener = TcpListener::bind(listen).await.unwrap();
    loop {
        let (near, _) = listener.accept().await.unwrap();
        tokio::spawn(async move {
            let Ok(far) = TcpStream::connect(target).await else { return };
            let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
            tokio::select! {
                () = late(near_read, far_write, delay) => {}
                () = late(far_read, near_write, delay) => {}
            }
        });
    }
}

/// One direction of a stream.
async fn late(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    let (queue, mut waiting) = mpsc::channel::<(Instant, Arc<[u8]>)>(1024);
    let read = async {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(length) = from.read(&mut buffer).await {
            if length == 0 || queue.send((Instant::now() + delay, buffer[..length].into())).await.is_err() {
                return;
            }
        }
    };
    let write = async {
        while let Some((at, bytes)) = waiting.recv().await {
            sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = read => {}, () = write => {} }
}
