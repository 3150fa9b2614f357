//! What a link does to what it carries, as values. Times are microseconds of the link's own time.

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape {
    /// Bits per second; none: as fast as it goes.
    pub bits_per_s: Option<u64>,
    /// Bits on the line for each byte: 8, or 10 on a serial line with start and stop bit.
    pub bits_per_byte: u32,
    /// Time from one end to the other.
    pub delay_us: u64,
    /// Up to so much more, by chance; order is kept.
    pub jitter_us: u64,
    /// Parts of a million that never arrive.
    pub loss_ppm: u32,
    /// Parts of a million that arrive twice.
    pub duplicate_ppm: u32,
    /// Parts of a million that are overtaken by what follows them.
    pub reorder_ppm: u32,
    /// Parts of a million in which a byte is changed.
    pub garble_ppm: u32,
    /// Bytes that wait for the line at most: packets beyond that are lost, streams have to wait.
    pub queue_bytes: u64,
    /// When it is up; always, if there is none.
    pub outage: Option<Outage>,
    /// What falls into an outage waits for its end instead of being lost, and chance takes nothing: a TCP stream.
    pub holds: bool,
    /// What chance begins from.
    pub seed: u64,
}

/// Up for the first part of every period.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outage {
    /// Up from the start of the period for so long.
    pub up_us: u64,
    /// Length of a period.
    pub every_us: u64,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            bits_per_s: None,
            bits_per_byte: 8,
            delay_us: 0,
            jitter_us: 0,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            garble_ppm: 0,
            queue_bytes: 64 << 10,
            outage: None,
            holds: false,
            seed: 1,
        }
    }
}

impl Shape {
    /// Microseconds that so many bytes take on the line.
    pub fn line_us(&self, bytes: usize) -> u64 {
        let bits = bytes as u128 * u128::from(self.bits_per_byte);
        self.bits_per_s
            .map_or(0, |rate| u64::try_from(bits * 1_000_000 / u128::from(rate.max(1))).unwrap_or(u64::MAX))
    }

    /// The same for the way back: its chance is another.
    pub fn back(&self) -> Self {
        Self { seed: self.seed ^ 0x5bd1_e995_0000_0001, ..*self }
    }
}

impl Outage {
    /// Whether the link is up.
    pub fn up(&self, at_us: u64) -> bool {
        at_us % self.every_us.max(1) < self.up_us
    }

    /// When it is up next, from `at_us` on.
    pub fn next_up(&self, at_us: u64) -> u64 {
        if self.up(at_us) { at_us } else { (at_us / self.every_us.max(1) + 1) * self.every_us.max(1) }
    }
}
