//! The part of `make demo` that updates a device: one screen of what happens, with bytes and seconds.

use anyhow::Result;
use qemu_tests::scenario::{RATE_KBIT, Scenario};

fn main() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut say = |line: &str| println!("{line}");
    let mut scenario = Scenario::begin(folder.path(), Some(RATE_KBIT), &mut say)?;
    scenario.good_release()?;
    scenario.sick_release()?;
    println!("{}", scenario.device().sh("farhold-agent why")?);
    Ok(())
}
