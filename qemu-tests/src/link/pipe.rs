//! One direction of a link: packets go in, and come out when and as the shape says. Pure: the caller tells the time.
//!
//! What chance does to packet number *n* depends on the seed and on *n* only, so that two runs with the same packets
//! meet the same fate whatever their clocks do.

use super::shape::Shape;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What an overtaken packet waits for beside the line's own time, at least, microseconds.
const HELD_BACK_US: u64 = 20_000;

/// What became of packets so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Packets that came in.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets handed out.
    pub delivered: u64,
    /// Their bytes.
    pub delivered_bytes: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Lost because the link was down.
    pub down: u64,
    /// Lost because too much waited.
    pub overflow: u64,
    /// Handed out twice.
    pub duplicated: u64,
    /// Overtaken.
    pub reordered: u64,
    /// Changed.
    pub garbled: u64,
}

/// Bytes that stay together, and to which of several users of the link they belong.
pub type Packet = (u32, Vec<u8>);

/// One direction.
#[derive(Debug)]
pub struct Pipe {
    shape: Shape,
    /// When the line has sent what it was given.
    free_us: u64,
    /// When the last packet that kept its place comes out.
    last_us: u64,
    flying: BinaryHeap<Reverse<(u64, u64, Packet)>>,
    order: u64,
    /// What became of packets.
    pub counts: Counts,
}

/// SplitMix64 (Steele, Lea, Flood 2014): the n-th number of a seed.
pub(super) fn chance(seed: u64, n: u64) -> u64 {
    let mut x = seed.wrapping_add(n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Kinds of chance: each has numbers of its own for each packet.
const KINDS: u64 = 8;

impl Pipe {
    /// An empty pipe.
    pub fn new(shape: Shape) -> Self {
        Self { shape, free_us: 0, last_us: 0, flying: BinaryHeap::new(), order: 0, counts: Counts::default() }
    }

    /// Changes the shape for what comes from now on.
    pub fn reshape(&mut self, shape: Shape) {
        self.shape = shape;
    }

    fn draw(&self, kind: u64) -> u64 {
        chance(self.shape.seed, self.counts.packets * KINDS + kind)
    }

    fn happens(&self, kind: u64, ppm: u32) -> bool {
        self.draw(kind) % 1_000_000 < u64::from(ppm)
    }

    /// Microseconds of line time that wait at `now_us`.
    fn backlog_us(&self, now_us: u64) -> u64 {
        self.free_us.saturating_sub(now_us)
    }

    /// Whether a stream may send more now without overflowing the queue.
    pub fn has_room(&self, now_us: u64) -> bool {
        self.backlog_us(now_us)
            <= self.shape.line_us(usize::try_from(self.shape.queue_bytes).unwrap_or(usize::MAX))
    }

    /// Since when a stream has had room to send.
    pub fn room_us(&self) -> u64 {
        let queue = usize::try_from(self.shape.queue_bytes).unwrap_or(usize::MAX);
        self.free_us.saturating_sub(self.shape.line_us(queue))
    }

    /// Takes a packet at time `now_us`.
    pub fn push(&mut self, now_us: u64, (channel, mut packet): Packet) {
        let shape = self.shape;
        let (lost, twice) = (self.happens(0, shape.loss_ppm), self.happens(1, shape.duplicate_ppm));
        let (late, garbled) = (self.happens(2, shape.reorder_ppm), self.happens(3, shape.garble_ppm));
        let (jitter, byte) = (self.draw(4), self.draw(5));
        self.counts.packets += 1;
        self.counts.bytes += packet.len() as u64;
        if shape.bits_per_s.is_some() && !shape.holds && !self.has_room(now_us) {
            self.counts.overflow += 1;
            return;
        }
        let mut begin = self.free_us.max(now_us);
        if let Some(outage) = shape.outage.filter(|_| shape.holds) {
            begin = outage.next_up(begin);
        }
        self.free_us = begin + shape.line_us(packet.len());
        if shape.holds {
            let at = self.last_us.max(self.free_us + shape.delay_us + jitter % (shape.jitter_us + 1));
            self.last_us = at;
            return self.fly(at, (channel, packet));
        }
        // What is lost took its time on the line all the same.
        if shape.outage.is_some_and(|outage| !outage.up(begin) || !outage.up(self.free_us)) {
            self.counts.down += 1;
            return;
        }
        if lost {
            self.counts.lost += 1;
            return;
        }
        if garbled && !packet.is_empty() {
            let at = (byte >> 8) as usize % packet.len();
            packet[at] ^= (byte as u8).max(1);
            self.counts.garbled += 1;
        }
        let mut at = self.free_us + shape.delay_us + jitter % (shape.jitter_us + 1);
        if late {
            self.counts.reordered += 1;
            at += HELD_BACK_US.max(shape.jitter_us) + 4 * shape.line_us(packet.len());
        } else {
            at = at.max(self.last_us);
            self.last_us = at;
        }
        if twice {
            self.counts.duplicated += 1;
            self.fly(at, (channel, packet.clone()));
        }
        self.fly(at, (channel, packet));
    }

    fn fly(&mut self, at: u64, packet: Packet) {
        self.flying.push(Reverse((at, self.order, packet)));
        self.order += 1;
    }

    /// When the next packet comes out.
    pub fn next_us(&self) -> Option<u64> {
        self.flying.peek().map(|Reverse((at, ..))| *at)
    }

    /// The next packet that is out by `now_us`.
    pub fn pop(&mut self, now_us: u64) -> Option<Packet> {
        if self.next_us().is_none_or(|at| at > now_us) {
            return None;
        }
        let Reverse((.., packet)) = self.flying.pop()?;
        self.counts.delivered += 1;
        self.counts.delivered_bytes += packet.1.len() as u64;
        Some(packet)
    }
}

#[cfg(test)]
mod tests {
    use super::super::shape::Outage;
    use super::*;
    use proptest::prelude::*;

    fn drain(pipe: &mut Pipe) -> Vec<(u64, Vec<u8>)> {
        let mut out = Vec::new();
        while let Some(at) = pipe.next_us() {
            assert!(at == 0 || pipe.pop(at - 1).is_none());
            out.push((at, pipe.pop(at).unwrap().1));
        }
        out
    }

    #[test]
    fn rate_and_delay_are_what_they_say() {
        let shape =
            Shape { bits_per_s: Some(2400), bits_per_byte: 10, delay_us: 600_000, ..Shape::default() };
        let mut pipe = Pipe::new(shape);
        for _ in 0..10 {
            pipe.push(0, (0, vec![0; 24]));
        }
        let out = drain(&mut pipe);
        let times: Vec<u64> = out.iter().map(|(at, _)| *at).collect();
        assert_eq!(times, (1..=10).map(|n| n * 100_000 + 600_000).collect::<Vec<u64>>());
    }

    #[test]
    fn shares_come_about_and_are_the_same_for_the_same_seed() {
        let shape = Shape {
            loss_ppm: 200_000,
            duplicate_ppm: 50_000,
            garble_ppm: 10_000,
            seed: 7,
            ..Shape::default()
        };
        let run = |gap: u64| {
            let mut pipe = Pipe::new(shape);
            (0..20_000u64).for_each(|n| pipe.push(n * gap, (0, n.to_le_bytes().to_vec())));
            let packets: Vec<Vec<u8>> = drain(&mut pipe).into_iter().map(|(_, packet)| packet).collect();
            (pipe.counts, packets)
        };
        let (counts, packets) = run(10);
        assert!((3_800..4_200).contains(&counts.lost), "{counts:?}");
        assert!(
            (700..900).contains(&counts.duplicated) && (120..200).contains(&counts.garbled),
            "{counts:?}"
        );
        assert_eq!(counts.delivered, 20_000 - counts.lost + counts.duplicated);
        assert_eq!(run(1000), (counts, packets), "another clock, the same fate");
        let other = Pipe::new(shape.back());
        assert_ne!(other.shape.seed, shape.seed);
    }

    #[test]
    fn nothing_passes_while_the_link_is_down() {
        let outage = Outage { up_us: 60_000_000, every_us: 600_000_000 };
        let mut pipe = Pipe::new(Shape { outage: Some(outage), ..Shape::default() });
        (0..1200u64).for_each(|second| pipe.push(second * 1_000_000, (0, vec![0])));
        let out = drain(&mut pipe);
        assert_eq!(out.len(), 120);
        assert!(out.iter().all(|(at, _)| at % 600_000_000 < 60_000_000));
        assert_eq!((outage.next_up(59_999_999), outage.next_up(60_000_000)), (59_999_999, 600_000_000));
    }

    #[test]
    fn a_stream_waits_for_the_end_of_an_outage_and_loses_nothing() {
        let outage = Some(Outage { up_us: 1_000_000, every_us: 10_000_000 });
        let shape =
            Shape { bits_per_s: Some(8_000), loss_ppm: 500_000, outage, holds: true, ..Shape::default() };
        let mut pipe = Pipe::new(shape);
        (0..25).for_each(|_| pipe.push(0, (3, vec![0; 100])));
        let out = drain(&mut pipe);
        assert_eq!(out.len(), 25);
        assert_eq!((out[9].0, out[10].0, out[24].0), (1_000_000, 10_100_000, 20_500_000));
    }

    #[test]
    fn a_full_queue_loses_packets() {
        let shape = Shape { bits_per_s: Some(8_000), queue_bytes: 1_000, ..Shape::default() };
        let mut pipe = Pipe::new(shape);
        (0..100).for_each(|_| pipe.push(0, (0, vec![0; 100])));
        assert_eq!((pipe.counts.overflow, drain(&mut pipe).len()), (89, 11));
    }

    #[test]
    fn overtaken_packets_come_later_and_are_not_lost() {
        let mut pipe = Pipe::new(Shape { reorder_ppm: 100_000, delay_us: 1_000, ..Shape::default() });
        (0..1000u32).for_each(|n| pipe.push(u64::from(n) * 1_000, (0, n.to_le_bytes().to_vec())));
        let out = drain(&mut pipe);
        let sorted = out.windows(2).filter(|pair| pair[0].1 > pair[1].1).count();
        assert_eq!(out.len(), 1000);
        assert!(pipe.counts.reordered > 50 && sorted > 20, "{:?}", pipe.counts);
    }

    proptest! {
        #[test]
        fn order_holds_without_reordering(seed: u64, gaps in prop::collection::vec(0u64..50_000, 1..200)) {
            let shape = Shape { bits_per_s: Some(64_000), jitter_us: 300_000, loss_ppm: 100_000, seed, ..Shape::default() };
            let mut pipe = Pipe::new(shape);
            let mut now = 0;
            for (n, gap) in gaps.iter().enumerate() {
                now += gap;
                pipe.push(now, (0, (n as u32).to_le_bytes().to_vec()));
            }
            let out = drain(&mut pipe);
            prop_assert!(out.windows(2).all(|pair| pair[0].0 <= pair[1].0));
            let numbers: Vec<u32> = out.iter().map(|(_, p)| u32::from_le_bytes(p[..].try_into().unwrap())).collect();
            prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]));
        }
    }
}
