//! Farhold's init: the first program of the initrd. It finds the slot that the signed command line names, opens it with
//! dm-verity, lets the agent prepare `/var` and `/etc`, and hands over to systemd. It knows nothing of updates.
//!
//! Data flows `kernel` (mounts, modules) → `watchdog` → `disks` → `slots` → `root` → `early` → systemd; what goes wrong
//! on the way ends in `fallback`. `decide` and the choices in `disks` and `slots` are pure. The installer, which is the
//! first program of another initrd, shares [`kernel`] and [`variables`].

mod boot;
mod decide;
mod disks;
mod early;
mod fallback;
mod ioctl;
pub mod kernel;
mod machine;
mod root;
mod slots;
pub mod variables;
mod watchdog;

/// Boots, if this is process 1 of an initrd; else says so and ends.
pub fn main() -> ! {
    // Started by mistake on a running system it would mount over /proc and might restart the machine.
    if !nix::unistd::getpid().as_raw().eq(&1) {
        eprintln!(
            "farhold-init: works only as process 1 of an initrd; on a running device use farhold-agent"
        );
        std::process::exit(1);
    }
    boot::run()
}
