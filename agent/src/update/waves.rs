//! Reads how large a share of the devices may take a release. That a source has no wave is something that it says; a wave
//! that does not come, or is none, says nothing: a release that was held back must not get out over a link that fails.

use crate::update::carrier::{Carrier, Failure, Toll};
use crate::update::step::Fault;
use formats::hex::Digest;
use formats::wave::{WAVE_BYTES, Wave};

/// The largest share that waves under these names let take the release `manifest`; `None` if there is no wave for it.
///
/// # Errors
/// [`Failure`] of the first that cannot be read; [`Fault::Damaged`] for one that is none.
pub fn read(
    carrier: &mut dyn Carrier,
    names: impl Iterator<Item = String>,
    manifest: Digest,
    toll: &mut dyn Toll,
) -> Result<Option<Wave>, Failure> {
    let mut found: Option<Wave> = None;
    for name in names {
        let bytes = match carrier.whole(&name, WAVE_BYTES as u64, toll) {
            Ok(bytes) => bytes,
            Err(failure) if failure.fault == Fault::Absent => continue,
            Err(failure) => return Err(failure),
        };
        let none = || Failure::new(Fault::Damaged, format!("{name} is no wave that this agent understands"));
        let wave = Wave::parse(&bytes).ok_or_else(none)?;
        if wave.manifest == manifest && found.is_none_or(|known| known.share < wave.share) {
            found = Some(wave);
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::update::carrier::{Sink, Tally, Wanted};

    struct Source(Vec<(&'static str, Result<Vec<u8>, Fault>)>);

    impl Carrier for Source {
        fn whole(&mut self, path: &str, _: u64, _: &mut dyn Toll) -> Result<Vec<u8>, Failure> {
            let found = self.0.iter().find(|(name, _)| *name == path).map(|(_, answer)| answer.clone());
            found.unwrap_or(Err(Fault::Absent)).map_err(|fault| Failure::new(fault, path))
        }
        fn pieces(&mut self, _: &Wanted, _: &mut dyn Sink) -> Result<(), Failure> {
            Err(Failure::new(Fault::Absent, "no pieces"))
        }
    }

    const ID: Digest = Digest([1; 32]);

    fn look(answers: Vec<(&'static str, Result<Vec<u8>, Fault>)>) -> Result<Option<u16>, Fault> {
        let names = ["all", "site"].into_iter().map(str::to_owned);
        let wave = read(&mut Source(answers), names, ID, &mut Tally::default());
        wave.map(|wave| wave.map(|wave| wave.share)).map_err(|failure| failure.fault)
    }

    #[test]
    fn only_a_source_that_says_so_has_no_wave() {
        let wave = |byte, share| Ok(Wave { manifest: Digest([byte; 32]), share }.encode());
        assert_eq!(look(vec![]), Ok(None));
        assert_eq!(look(vec![("all", wave(1, 5)), ("site", wave(1, 300))]), Ok(Some(300)));
        assert_eq!(look(vec![("all", wave(1, 5)), ("site", wave(2, 300))]), Ok(Some(5)));
        assert_eq!(look(vec![("all", wave(2, 5))]), Ok(None));
        for fault in [Fault::Unreachable(None), Fault::Unreachable(Some(9)), Fault::Damaged, Fault::Local] {
            assert_eq!(look(vec![("all", wave(1, 5)), ("site", Err(fault))]), Err(fault));
        }
        assert_eq!(look(vec![("all", Ok(b"<html>".to_vec()))]), Err(Fault::Damaged));
    }
}
