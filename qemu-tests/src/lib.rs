//! The lab: Farhold images in QEMU under real UEFI firmware, and what the tests and `farhold lab` share to drive them.
//!
//! It drives the two programs from outside and knows of their insides only what `formats` says. From the bottom up:
//!
//! - [`qemu`]: which QEMU and firmware to use
//! - [`machine`]: a virtual machine as a value, and the command line that makes it
//! - [`disk`], [`esp`]: disk images and the files on their ESP, seen and damaged from outside
//! - [`firmware_vars`]: Secure Boot keys written into a machine's firmware variables
//! - [`process`], [`socket`], [`qmp`]: the running QEMU, its sockets, its control channel
//! - [`vm`]: one machine in one folder: disks, firmware variables, start, wait
//! - [`console`], [`status`], [`ssh`]: what the guest says, what the agent says, commands inside the guest
//! - [`keyboard`]: somebody who types at a console
//! - [`fault`]: power cuts, pauses, resets
//! - [`blklog`]: what a disk was asked to write and to flush, in order
//! - [`power_cut`]: every state that a cut leaves of the ESP, judged and booted
//! - [`boot`]: how far a boot has come, and what took how long
//! - [`attach`]: a terminal joined to a console
//! - [`link`]: a bad link in user space, between TAP devices, sockets or pseudo-terminals
//! - [`site`]: one or more machines that outlive the command that started them
//! - [`pair`]: two machines of a site made a pair, with a witness on the host
//! - [`programs`], [`workshop`], [`server`]: the programs under test, releases made with them, releases served
//! - [`testing`]: what every test needs first
//! - [`scenario`]: a device that is updated, for a test and for `make demo`
//! - [`installation`]: a stick, machines with empty disks, and what the installer does there

pub mod attach;
pub mod blklog;
pub mod boot;
pub mod broker;
pub mod console;
pub mod disk;
pub mod esp;
pub mod fault;
pub mod firmware_vars;
pub mod installation;
pub mod keyboard;
pub mod link;
pub mod machine;
pub mod pair;
pub mod power_cut;
pub mod process;
pub mod programs;
pub mod qemu;
pub mod qmp;
pub mod scenario;
pub mod server;
pub mod site;
pub mod socket;
pub mod ssh;
pub mod status;
pub mod stick;
pub mod testing;
pub mod vm;
pub mod workshop;
