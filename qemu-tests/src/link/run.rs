//! Two ends joined by two pipes, in real time or faster. One thread; decides nothing.

use super::ends::End;
use super::pipe::{Counts, Pipe};
use super::shape::Shape;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use std::collections::{BTreeMap, VecDeque};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a stream that meet their fate together: so much is lost or garbled at once.
const PIECE: usize = 32;
/// Bytes of a TCP stream that travel together.
const SEGMENT: usize = 1400;
/// Bytes that a kernel takes of a program and sends over a line by itself, however late anybody wakes.
const KEPT: usize = 4096;
/// Largest packet.
const PACKET: usize = 65_536;
/// Longest sleep: the wish to end is heard after so long.
const LONGEST: Duration = Duration::from_millis(100);

/// What became of packets, there and back.
pub type Both = [Counts; 2];

struct Channel {
    ends: [End; 2],
    /// What a terminal has given, and when, that the line has not taken yet.
    kept: [VecDeque<(u64, Vec<u8>)>; 2],
    /// What the end has no room for yet.
    pending: [Vec<u8>; 2],
    /// Whether it will send no more.
    ended: [bool; 2],
    /// Whether it was told that no more comes.
    closed: [bool; 2],
}

impl Channel {
    /// Takes what a terminal has, as far as there is room.
    fn keep(&mut self, side: usize, now_us: u64, buffer: &mut [u8]) -> Result<()> {
        while self.kept[side].len() < KEPT / PIECE {
            match self.ends[side].read(&mut buffer[..PIECE]).context("read from an end of the link")? {
                None | Some(0) => return Ok(()),
                Some(n) => self.kept[side].push_back((now_us, buffer[..n].to_vec())),
            }
        }
        Ok(())
    }

    /// Gives it to the line, as of when the line had room for it: a line does not pause because its simulation slept.
    fn send(&mut self, side: usize, (number, now_us): (u32, u64), pipe: &mut Pipe) {
        while pipe.has_room(now_us)
            && let Some((came_us, piece)) = self.kept[side].pop_front()
        {
            pipe.push(came_us.max(pipe.room_us()), (number, piece));
        }
    }
}

/// A link.
pub struct Link {
    pipes: [Pipe; 2],
    channels: BTreeMap<u32, Channel>,
    next: u32,
    listener: Option<(TcpListener, SocketAddr)>,
    begun: Instant,
    scale: f64,
    counts: Arc<Mutex<Both>>,
    buffer: Vec<u8>,
}

impl Link {
    /// A link without ends; its time runs `scale` times as fast as ours.
    pub fn new(there: Shape, back: Shape, scale: f64) -> Self {
        Self {
            pipes: [Pipe::new(there), Pipe::new(back)],
            channels: BTreeMap::new(),
            next: 0,
            listener: None,
            begun: Instant::now(),
            scale,
            counts: Arc::default(),
            buffer: vec![0; PACKET],
        }
    }

    /// Joins two ends.
    pub fn join(&mut self, a: End, b: End) {
        let (kept, pending) = Default::default();
        let channel = Channel { ends: [a, b], kept, pending, ended: [false; 2], closed: [false; 2] };
        self.channels.insert(self.next, channel);
        self.next += 1;
    }

    /// Joins whoever connects to a listening socket with an address; all share the line.
    ///
    /// # Errors
    /// The kernel's.
    pub fn relay(&mut self, listener: TcpListener, to: SocketAddr) -> Result<()> {
        listener.set_nonblocking(true).context("prepare a listening socket")?;
        self.listener = Some((listener, to));
        Ok(())
    }

    /// Counts as they are while it runs.
    pub fn counts(&self) -> Arc<Mutex<Both>> {
        Arc::clone(&self.counts)
    }

    fn now_us(&self) -> u64 {
        (self.begun.elapsed().as_secs_f64() * 1e6 * self.scale) as u64
    }

    /// Carries until it is told to stop.
    ///
    /// # Errors
    /// If an end fails; a TCP connection that does is closed.
    pub fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        while !stop.load(Ordering::Relaxed) {
            self.wait()?;
            self.accept()?;
            self.take_in()?;
            self.hand_out()?;
            *self.counts.lock().unwrap_or_else(PoisonError::into_inner) =
                [self.pipes[0].counts, self.pipes[1].counts];
        }
        Ok(())
    }

    /// Sleeps until an end has or takes something, or a packet is due.
    fn wait(&self) -> Result<()> {
        let now = self.now_us();
        let mut fds = Vec::new();
        for channel in self.channels.values() {
            for side in 0..2 {
                let mut events = PollFlags::empty();
                if self.wants(channel, side, now) {
                    events |= PollFlags::POLLIN;
                }
                if !channel.pending[side].is_empty() {
                    events |= PollFlags::POLLOUT;
                }
                if !events.is_empty() {
                    fds.push(PollFd::new(channel.ends[side].fd(), events));
                }
            }
        }
        if let Some((listener, _)) = &self.listener {
            fds.push(PollFd::new(listener.as_fd(), PollFlags::POLLIN));
        }
        let due = self.pipes.iter().filter_map(Pipe::next_us).min();
        let full = self.pipes.iter().any(|pipe| !pipe.has_room(now));
        let sleep = due.map_or(LONGEST, |due| {
            Duration::from_secs_f64(due.saturating_sub(now) as f64 / 1e6 / self.scale).min(LONGEST)
        });
        let sleep = if full { sleep.min(Duration::from_millis(1)) } else { sleep };
        match ppoll(&mut fds, Some(TimeSpec::from_duration(sleep)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for the ends of the link"),
        }
    }

    /// Packets are always taken; a stream waits while the line has enough.
    fn wants(&self, channel: &Channel, side: usize, now_us: u64) -> bool {
        let room = match &channel.ends[side] {
            End::Tap(_) | End::Udp(..) | End::Framed(_) => true,
            End::Tcp(_) => self.pipes[side].has_room(now_us),
            End::Terminal(..) => channel.kept[side].len() < KEPT / PIECE,
        };
        !channel.ended[side] && room
    }

    fn accept(&mut self) -> Result<()> {
        while let Some((listener, to)) = &self.listener {
            let Ok((stream, _)) = listener.accept() else { return Ok(()) };
            // A refused connection is the client's to see.
            let Ok(other) = TcpStream::connect(to) else { continue };
            let (a, b) = (End::tcp(stream)?, End::tcp(other)?);
            self.join(a, b);
        }
        Ok(())
    }

    fn take_in(&mut self) -> Result<()> {
        let now = self.now_us();
        let buffer = &mut self.buffer;
        for (number, channel) in &mut self.channels {
            for side in 0..2 {
                let (stream, pipe) = (channel.ends[side].stream(), &mut self.pipes[side]);
                if let End::Terminal(..) = channel.ends[side] {
                    channel.keep(side, now, buffer)?;
                    channel.send(side, (*number, now), pipe);
                    continue;
                }
                let most = if stream { SEGMENT } else { PACKET };
                while !channel.ended[side] && (!stream || pipe.has_room(now)) {
                    match channel.ends[side].read(&mut buffer[..most]) {
                        Ok(None) => break,
                        Ok(Some(n)) => {
                            channel.ended[side] = stream && n == 0;
                            pipe.push(now, (*number, buffer[..n].to_vec()));
                        }
                        Err(error) => return Err(error).context("read from an end of the link"),
                    }
                }
            }
        }
        Ok(())
    }

    fn hand_out(&mut self) -> Result<()> {
        let now = self.now_us();
        for from in 0..2 {
            let to = 1 - from;
            while let Some((number, bytes)) = self.pipes[from].pop(now) {
                let Some(channel) = self.channels.get_mut(&number) else { continue };
                if channel.ends[to].stream() && bytes.is_empty() {
                    channel.closed[to] = true;
                    continue;
                }
                if channel.pending[to].is_empty() {
                    let n = channel.ends[to].write(&bytes).context("write to an end of the link")?;
                    channel.pending[to].extend_from_slice(&bytes[n.min(bytes.len())..]);
                } else {
                    channel.pending[to].extend_from_slice(&bytes);
                }
            }
        }
        self.channels.retain(|_, channel| {
            for side in 0..2 {
                let (end, pending) = (&mut channel.ends[side], &mut channel.pending[side]);
                if !pending.is_empty() {
                    let n = end.write(pending).unwrap_or(pending.len());
                    pending.drain(..n);
                }
                if channel.closed[side] && pending.is_empty() {
                    end.close();
                }
            }
            !(channel.closed == [true; 2] && channel.pending.iter().all(Vec::is_empty))
        });
        Ok(())
    }

    /// Carries on a thread of its own until what is given is dropped.
    pub fn spawn(mut self) -> Running {
        let stop = Arc::new(AtomicBool::new(false));
        let (counts, asked) = (self.counts(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || self.run(&asked));
        Running { stop, counts, thread: Some(thread) }
    }
}

/// A link on a thread of its own.
#[derive(Debug)]
pub struct Running {
    stop: Arc<AtomicBool>,
    counts: Arc<Mutex<Both>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Running {
    /// What became of packets, there and back.
    pub fn counts(&self) -> Both {
        *self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it ended by itself, as it does when an end is gone.
    pub fn ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(Ok(Err(error))) = self.thread.take().map(JoinHandle::join) {
            eprintln!("the link ended early: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::UdpSocket;

    #[test]
    fn terminals_are_joined_at_their_rate() {
        let shape =
            Shape { bits_per_s: Some(9_600), bits_per_byte: 10, queue_bytes: 512, ..Shape::default() };
        let ((a, a_path), (b, b_path)) = (End::terminal().unwrap(), End::terminal().unwrap());
        let mut link = Link::new(shape, shape, 10.0);
        link.join(a, b);
        let running = link.spawn();
        let sent: Vec<u8> = (0..4_800u32).map(|n| (n * 7) as u8).collect();
        let mut reader = std::fs::File::options().read(true).write(true).open(b_path).unwrap();
        let mut writer = std::fs::File::options().read(true).write(true).open(a_path).unwrap();
        let begun = Instant::now();
        let bytes = sent.clone();
        let thread = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
        let mut came = vec![0; sent.len()];
        reader.read_exact(&mut came).unwrap();
        thread.join().unwrap();
        assert_eq!(came, sent);
        // 5 s of line time, ten times as fast.
        assert!(begun.elapsed() >= Duration::from_millis(490), "{:?}", begun.elapsed());
        assert_eq!(running.counts()[0].lost, 0);
    }

    #[test]
    fn datagrams_are_lost_as_the_seed_says() {
        let (a, b) = (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        let near = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = near.local_addr().unwrap();
        near.set_nonblocking(true).unwrap();
        let shape = Shape { loss_ppm: 300_000, ..Shape::default() };
        let mut link = Link::new(shape, shape.back(), 1.0);
        let far = End::udp("127.0.0.1:0".parse().unwrap(), Some(b.local_addr().unwrap())).unwrap();
        link.join(End::Udp(near, None), far);
        let running = link.spawn();
        b.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut buffer = [0; 16];
        let mut got = Vec::new();
        for n in 0..200u8 {
            a.send_to(&[n], address).unwrap();
        }
        // The seed's own answer: how many of the first 200 pass.
        let mut model = Pipe::new(shape);
        (0..200u8).for_each(|n| model.push(0, (0, vec![n])));
        let expected: Vec<u8> =
            std::iter::from_fn(|| model.pop(u64::MAX)).map(|(_, packet)| packet[0]).collect();
        for _ in 0..expected.len() {
            assert_eq!(b.recv(&mut buffer).unwrap(), 1);
            got.push(buffer[0]);
        }
        assert_eq!(got, expected);
        assert!((100..180).contains(&got.len()), "{running:?}");
    }

    #[test]
    fn a_tcp_stream_arrives_whole_and_its_end_too() {
        let far = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpListener::bind("127.0.0.1:0").unwrap();
        let (to, address) = (far.local_addr().unwrap(), near.local_addr().unwrap());
        let shape = Shape { bits_per_s: Some(8_000_000), delay_us: 5_000, holds: true, ..Shape::default() };
        let mut link = Link::new(shape, shape, 1.0);
        link.relay(near, to).unwrap();
        let _running = link.spawn();
        let server = std::thread::spawn(move || {
            let (mut stream, _) = far.accept().unwrap();
            let mut asked = Vec::new();
            stream.read_to_end(&mut asked).unwrap();
            stream.write_all(&asked).unwrap();
        });
        let mut client = TcpStream::connect(address).unwrap();
        let sent: Vec<u8> = (0..100_000u32).map(|n| (n >> 3) as u8).collect();
        client.write_all(&sent).unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let mut came = Vec::new();
        client.read_to_end(&mut came).unwrap();
        server.join().unwrap();
        assert_eq!(came, sent);
    }
}
