//! Pacing: all connections together send no more than so many bits per second, as one slow link would let through.
//! Pure: the caller tells the time and does the waiting.

use std::time::Duration;

/// Longest time that unused room is kept, so that a pause is not followed by a burst.
const BURST: Duration = Duration::from_millis(50);

/// A rate, and up to when it is used up.
#[derive(Clone, Debug)]
pub struct Pace {
    bits_per_s: u64,
    /// When what was sent so far is through, since a time of the caller's choosing.
    free_at: Duration,
}

impl Pace {
    /// A rate of at least one bit per second.
    pub fn new(bits_per_s: u64) -> Self {
        Self { bits_per_s: bits_per_s.max(1), free_at: Duration::ZERO }
    }

    /// Takes room for `bytes` bytes at time `now` and says how long to wait before they may go out.
    pub fn take(&mut self, now: Duration, bytes: usize) -> Duration {
        let begin = self.free_at.max(now.saturating_sub(BURST));
        let nanos = bytes as u128 * 8 * 1_000_000_000 / u128::from(self.bits_per_s);
        self.free_at = begin.saturating_add(Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX)));
        self.free_at.saturating_sub(now)
    }

    /// Bytes to send at once: about a fiftieth of a second's worth, so that waiting is even.
    pub fn chunk(&self) -> usize {
        usize::try_from(self.bits_per_s / 8 / 50).unwrap_or(usize::MAX).clamp(256, 64 * 1024)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_second_carries_more_than_the_rate_and_a_burst(
            bits_per_s in 1000u64..10_000_000, pauses in prop::collection::vec(0u64..300, 1..200),
        ) {
            let mut pace = Pace::new(bits_per_s);
            let (mut now, mut sent) = (Duration::ZERO, Vec::new());
            for pause_ms in pauses {
                now += Duration::from_millis(pause_ms);
                let bytes = pace.chunk();
                now += pace.take(now, bytes);
                sent.push((now, bytes));
            }
            let most = bits_per_s as f64 / 8.0 * (1.0 + BURST.as_secs_f64()) + pace.chunk() as f64 + 1.0;
            for (n, (from, _)) in sent.iter().enumerate() {
                let second = sent[n..].iter().take_while(|(at, _)| *at <= *from + Duration::from_secs(1));
                let bytes: usize = second.map(|(_, bytes)| bytes).sum();
                prop_assert!((bytes as f64) <= most, "{bytes} bytes in a second, {most} allowed");
            }
        }
    }

    #[test]
    fn a_steady_sender_gets_the_whole_rate() {
        let mut pace = Pace::new(1_000_000);
        let (mut now, mut bytes) = (Duration::ZERO, 0);
        while now < Duration::from_secs(10) {
            now += pace.take(now, pace.chunk());
            bytes += pace.chunk();
        }
        assert!((1_240_000..=1_260_000).contains(&bytes), "{bytes}");
    }
}
