//! Farhold's installer: the first program of a stick's boot image, and of the recovery entry of an installed disk.
//!
//! Data flows `machine` (what the kernel shows) → `inspect` (what stands on a disk) → `choose` (which disk, pure), and
//! `stick` → `site` (what a site wants, pure) and `release` (what is signed); both meet in `install`, which has `layout`
//! and `write` do the work, through the [`disk::Disk`] seam. `recovery` is the menu of an installed disk. The builder's
//! `farhold devices` and `farhold flash` look at disks with the same eyes.

pub mod choose;
pub mod console;
mod dialogue;
pub mod disk;
pub mod inspect;
mod install;
pub mod layout;
pub mod machine;
mod recovery;
pub mod release;
mod run;
#[cfg(test)]
mod samples;
pub mod site;
mod stick;
pub mod write;

/// Installs, if this is process 1 of an initrd; else says so and ends.
pub fn main() -> ! {
    if nix::unistd::getpid().as_raw() != 1 {
        eprintln!(
            "farhold-installer: works only as process 1 of a stick or recovery entry; `farhold usb` makes a stick"
        );
        std::process::exit(1);
    }
    run::run()
}
