//! Farhold's init: the only program of the initrd. It finds the slot that the signed command line names, opens it with
//! dm-verity, lets the agent prepare `/var` and `/etc`, and hands over to systemd. It knows nothing of updates.
//!
//! Data flows `kernel` (mounts, modules) → `watchdog` → `disks` → `slots` → `root` → `early` → systemd; what goes wrong
//! on the way ends in `fallback`. `decide` and the choices in `disks` and `slots` are pure.

mod boot;
mod decide;
mod disks;
mod early;
mod fallback;
mod ioctl;
mod kernel;
mod machine;
mod root;
mod slots;
mod variables;
mod watchdog;

fn main() {
    // Started by mistake on a running system it would mount over /proc and might restart the machine.
    if !nix::unistd::getpid().as_raw().eq(&1) {
        eprintln!(
            "farhold-init: works only as process 1 of an initrd; on a running device use farhold-agent"
        );
        std::process::exit(1);
    }
    boot::run();
}
