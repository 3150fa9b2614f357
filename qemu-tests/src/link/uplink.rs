//! The network between a running machine and its host, led through a link: QEMU hands each packet to us and sends on what
//! we give back (its `filter-redirector`). The machine notices nothing but its line.

use super::ends::End;
use super::framed::Framed;
use crate::machine::UPLINK;
use crate::process::Process;
use crate::qmp::Qmp;
use crate::vm::Vm;
use anyhow::{Context, Result};
use serde_json::json;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

/// Where a filter stands in the network: what it takes from the machine, and what it takes from the host.
const QUEUES: [&str; 2] = ["rx", "tx"];
/// A filter hands packets out on one channel and takes them in on another.
const WAYS: [&str; 2] = ["outdev", "indev"];

/// The network of a machine while it is led through a link; it is as before when this is dropped.
pub struct Uplink {
    vm: Vm,
    process: Process,
}

impl Uplink {
    /// Leads it through a link; gives the machine's end and the host's.
    ///
    /// # Errors
    /// If the machine is off, or QEMU refuses.
    pub fn take(vm: &Vm) -> Result<(Self, End, End)> {
        let name = vm.machine()?.name;
        let process =
            vm.process()?.with_context(|| format!("{name} is off; `farhold lab start` powers it on"))?;
        let folder = tempfile::Builder::new().prefix("farhold-uplink-").tempdir()?;
        let mut qmp = Qmp::connect(vm.folder())?;
        // Somebody may have been killed in the middle.
        release(&mut qmp);
        let uplink = Self { vm: vm.clone(), process };
        let [from_machine, to_host] = filter(&mut qmp, folder.path(), QUEUES[0])?;
        let [from_host, to_machine] = filter(&mut qmp, folder.path(), QUEUES[1])?;
        let end = |from, to| Framed::new(from, to).map(End::Framed).context("prepare a channel to QEMU");
        Ok((uplink, end(from_machine, to_machine)?, end(from_host, to_host)?))
    }
}

/// Puts a filter into the network; gives the channel on which packets come and the one that they go on.
fn filter(qmp: &mut Qmp, folder: &Path, queue: &str) -> Result<[UnixStream; 2]> {
    let channel = |way: &str| format!("farhold-{queue}-{way}");
    let mut open = |way: &str| -> Result<UnixStream> {
        let path = folder.join(channel(way));
        let listener = UnixListener::bind(&path).with_context(|| format!("listen at {}", path.display()))?;
        let address = json!({ "type": "unix", "data": { "path": path } });
        let backend = json!({ "type": "socket", "data": { "addr": address, "server": false } });
        qmp.execute("chardev-add", json!({ "id": channel(way), "backend": backend }))?;
        Ok(listener.accept().context("hear from QEMU")?.0)
    };
    let streams = [open(WAYS[0])?, open(WAYS[1])?];
    let mut object = json!({ "qom-type": "filter-redirector", "id": format!("farhold-{queue}"), "netdev": UPLINK, "queue": queue });
    for way in WAYS {
        object[way] = channel(way).into();
    }
    qmp.execute("object-add", object)?;
    Ok(streams)
}

/// Takes out what is there of filters and channels; what is not there is as it should be.
fn release(qmp: &mut Qmp) {
    for queue in QUEUES {
        drop(qmp.execute("object-del", json!({ "id": format!("farhold-{queue}") })));
        for way in WAYS {
            drop(qmp.execute("chardev-remove", json!({ "id": format!("farhold-{queue}-{way}") })));
        }
    }
}

impl Drop for Uplink {
    fn drop(&mut self) {
        if !self.process.alive() {
            return;
        }
        match Qmp::connect(self.vm.folder()) {
            Ok(mut qmp) => release(&mut qmp),
            Err(error) => eprintln!("the network stays cut until the machine starts anew: {error:#}"),
        }
    }
}
