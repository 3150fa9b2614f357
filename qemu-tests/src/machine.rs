//! A virtual machine as a value, and the QEMU command line that makes it. Touches nothing.
//!
//! File and socket names are relative: QEMU runs in the machine's folder.

use crate::qemu::Qemu;
use crate::qmp;
use formats::arch::Arch;
use formats::status::VIRTIO_PORT;
use serde::{Deserialize, Serialize};

/// Serial console socket in the machine's folder.
pub const SERIAL_SOCKET: &str = "serial.sock";
/// All that the serial console ever said.
pub const SERIAL_LOG: &str = "serial.log";
/// Socket of the agent's virtio-serial port.
pub const AGENT_SOCKET: &str = "agent.sock";
/// This machine's copy of the firmware variables.
pub const VARS: &str = "vars.fd";

/// QEMU's name for the network between the machines of a site.
pub const LAN: &str = "lan";
/// QEMU's name for the network to the host, over which SSH and the witness are reached.
pub const UPLINK: &str = "uplink";

/// A machine. What is not here is the same for all machines of an architecture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Name, also the folder's.
    pub name: String,
    /// Processor.
    pub arch: Arch,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// Number of processors.
    pub processors: u32,
    /// Disks; the firmware boots from the first.
    pub disks: Vec<Disk>,
    /// Loopback port that leads to the guest's SSH; `None` for no network at all.
    pub ssh_port: Option<u16>,
    /// Joins the machines of a site: number of the multicast group's port, and this node's index from 0.
    pub lan: Option<Lan>,
    /// Whether the firmware enforces Secure Boot with the keys in its variables.
    pub secure_boot: bool,
    /// systemd credentials handed over as SMBIOS strings (systemd.system-credentials(7)).
    pub credentials: Vec<(String, String)>,
    /// Words that the EFI stub adds to the kernel command line (systemd-stub(7)); it does not with Secure Boot.
    #[serde(default)]
    pub kernel_words: Vec<String>,
    /// Serial number that the machine says it has.
    #[serde(default)]
    pub serial: Option<String>,
    /// USB ports, for sticks that are plugged in while it runs; a disk on [`Bus::Usb`] brings them too.
    #[serde(default)]
    pub usb_ports: bool,
}

/// A network that the machines of a site share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lan {
    /// UDP port of the multicast group on the loopback interface.
    pub port: u16,
    /// Index of this node, from 1.
    pub node: u8,
    /// The one other node of a site of two: a cable between both, of sockets beside the machines' folders. Else a multicast
    /// group.
    #[serde(default)]
    pub peer: Option<u8>,
}

impl Lan {
    /// The address of the network card.
    pub fn mac(&self) -> String {
        format!("52:54:00:fa:00:{:02x}", self.node)
    }
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// Raw image in the machine's folder.
    pub file: String,
    /// How it is attached.
    pub bus: Bus,
    /// What a flush means.
    pub cache: Cache,
    /// Whether the disk refuses writes.
    #[serde(default)]
    pub read_only: bool,
}

/// How a disk is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Bus {
    /// virtio-blk, `/dev/vda`.
    Virtio,
    /// NVMe, `/dev/nvme0n1`.
    Nvme,
    /// USB mass storage; needs a kernel with USB.
    Usb,
}

/// What a guest's flush means to the host.
///
/// A killed QEMU loses nothing that it wrote in either mode: the host's page cache survives it. To lose what was not
/// flushed, record the writes with [`Cache::Logged`] and replay them up to a flush.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Cache {
    /// Flushes are ignored: fastest, right where the host does not lose power.
    Unsafe,
    /// A flush reaches the host's disk.
    Writeback,
    /// As [`Cache::Unsafe`], and every write and flush is recorded in order in `<file>.log` in the format of the
    /// kernel's `dm-log-writes`.
    Logged,
}

impl Disk {
    /// A virtio disk whose flushes are ignored.
    pub fn virtio(file: &str) -> Self {
        Self { file: file.to_owned(), bus: Bus::Virtio, cache: Cache::Unsafe, read_only: false }
    }

    fn arguments(&self, index: usize) -> Vec<String> {
        let drive = format!("disk{index}");
        let cache = match self.cache {
            Cache::Unsafe | Cache::Logged => "cache.direct=off,cache.no-flush=on",
            Cache::Writeback => "cache.direct=off,cache.no-flush=off",
        };
        let access = if self.read_only { "on" } else { "off" };
        let file = format!("driver=file,filename={},discard=unmap,read-only={access},{cache}", self.file);
        let mut out = match self.cache {
            Cache::Unsafe | Cache::Writeback => {
                vec!["-blockdev".into(), format!("{file},node-name={drive}-file")]
            }
            Cache::Logged => vec![
                "-blockdev".into(),
                format!("{file},node-name={drive}-data"),
                "-blockdev".into(),
                format!("driver=file,filename={}.log,node-name={drive}-log,{cache}", self.file),
                "-blockdev".into(),
                format!("driver=blklogwrites,file={drive}-data,log={drive}-log,node-name={drive}-file"),
            ],
        };
        let format = format!(
            "driver=raw,file={drive}-file,node-name={drive},read-only={access},{cache},discard=unmap"
        );
        let boot = format!("drive={drive},bootindex={}", index + 1);
        let device = match self.bus {
            Bus::Virtio => format!("virtio-blk-pci,{boot},serial={drive}"),
            Bus::Nvme => format!("nvme,{boot},serial={drive}"),
            Bus::Usb => format!("usb-storage,{boot},bus=usb.0,serial={drive}"),
        };
        out.extend(["-blockdev".into(), format, "-device".into(), device]);
        out
    }
}

impl Machine {
    /// A machine with one virtio disk `disk0.img`, two processors and no network.
    pub fn new(name: &str, arch: Arch) -> Self {
        Self {
            name: name.to_owned(),
            arch,
            memory_mib: 1024,
            processors: 2,
            disks: vec![Disk::virtio("disk0.img")],
            ssh_port: None,
            lan: None,
            secure_boot: false,
            credentials: Vec::new(),
            kernel_words: match arch {
                // The kernel counts timer interrupts for some milliseconds, and panics where a host under load gave it
                // none. Hypervisors that it knows are exempt; an emulated processor is not.
                Arch::X86_64 => vec!["no_timer_check".to_owned()],
                Arch::Arm64 => Vec::new(),
            },
            serial: None,
            usb_ports: false,
        }
    }

    /// Options for QEMU, after those that [`Qemu`] brings.
    pub fn arguments(&self, qemu: &Qemu) -> Vec<String> {
        let mut out = self.board(qemu);
        let mut add = |option: &str, value: String| out.extend([option.to_owned(), value]);
        add("-smp", self.processors.to_string());
        add("-m", self.memory_mib.to_string());
        add("-name", format!("farhold-{}", self.name));
        add("-rtc", "base=utc".into());
        add("-device", "virtio-rng-pci".into());
        socket(&mut add, "serial", SERIAL_SOCKET, Some(SERIAL_LOG));
        add("-serial", "chardev:serial".into());
        socket(&mut add, "agent", AGENT_SOCKET, None);
        add("-device", "virtio-serial-pci".into());
        add("-device", format!("virtserialport,chardev=agent,name={VIRTIO_PORT}"));
        socket(&mut add, "qmp", qmp::SOCKET, None);
        add("-mon", "chardev=qmp,mode=control".into());
        if let Some(port) = self.ssh_port {
            add("-nic", format!("user,id={UPLINK},model=virtio-net-pci,hostfwd=tcp:127.0.0.1:{port}-:22"));
        } else {
            add("-nic", "none".into());
        }
        if let Some(lan) = self.lan {
            let Lan { port, node, peer } = lan;
            let end = |node: u8| format!("../lan{node}.sock");
            let net = match peer {
                Some(peer) => format!(
                    "dgram,id={LAN},local.type=unix,local.path={},remote.type=unix,remote.path={}",
                    end(node),
                    end(peer)
                ),
                None => format!("socket,id={LAN},mcast=230.0.0.1:{port},localaddr=127.0.0.1"),
            };
            add("-netdev", net);
            add("-device", format!("virtio-net-pci,netdev={LAN},mac={}", lan.mac()));
        }
        if let Some(serial) = &self.serial {
            add("-smbios", format!("type=1,serial={}", serial.replace(',', ",,")));
        }
        for (name, value) in &self.credentials {
            add(
                "-smbios",
                format!("type=11,value=io.systemd.credential:{name}={}", value.replace(',', ",,")),
            );
        }
        if !self.kernel_words.is_empty() {
            let words = self.kernel_words.join(" ").replace(',', ",,");
            add("-smbios", format!("type=11,value=io.systemd.stub.kernel-cmdline-extra={words}"));
        }
        if self.usb_ports || self.disks.iter().any(|disk| disk.bus == Bus::Usb) {
            add("-device", "qemu-xhci,id=usb".into());
        }
        for (index, disk) in self.disks.iter().enumerate() {
            out.extend(disk.arguments(index));
        }
        out
    }

    /// Board, processor, firmware, watchdog.
    fn board(&self, qemu: &Qemu) -> Vec<String> {
        let secure = if self.secure_boot { "on" } else { "off" };
        let (board, processor) = match self.arch {
            Arch::X86_64 => (format!("q35,smm={secure}"), "max"),
            // Real pointer authentication costs a third of the speed when it is emulated.
            Arch::Arm64 => ("virt".to_owned(), "max,pauth-impdef=on"),
        };
        let code = if self.secure_boot { &qemu.firmware.secure_code } else { &qemu.firmware.code };
        let mut out: Vec<String> = ["-nodefaults", "-no-user-config", "-display", "none", "-machine", &board]
            .map(str::to_owned)
            .into();
        // tb-size: MiB of translated code; the default throws work away during a boot.
        out.extend(["-accel", "tcg,thread=multi,tb-size=512", "-cpu", processor].map(str::to_owned));
        out.extend([
            "-drive".into(),
            format!("if=pflash,format=raw,unit=0,readonly=on,file={}", code.display()),
            "-drive".into(),
            format!("if=pflash,format=raw,unit=1,file={VARS}"),
        ]);
        match self.arch {
            Arch::X86_64 => {
                if self.secure_boot {
                    out.extend(
                        ["-global", "driver=cfi.pflash01,property=secure,value=on"].map(str::to_owned),
                    );
                    out.extend(["-global", "ICH9-LPC.disable_s3=1"].map(str::to_owned));
                }
            }
            Arch::Arm64 => {}
        }
        // A PCI card, the same for both; the board `virt` has no watchdog of its own.
        out.extend(["-device", "i6300esb", "-action", "watchdog=reset"].map(str::to_owned));
        out
    }
}

fn socket(add: &mut impl FnMut(&str, String), id: &str, file: &str, log: Option<&str>) {
    let log = log.map(|log| format!(",logfile={log},logappend=on")).unwrap_or_default();
    add("-chardev", format!("socket,id={id},path={file},server=on,wait=off{log}"));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::Firmware;
    use std::collections::BTreeMap;

    fn qemu() -> Qemu {
        Qemu {
            command: vec!["qemu".into()],
            environment: BTreeMap::new(),
            firmware: Firmware {
                code: "/fw/code.fd".into(),
                secure_code: "/fw/secure.fd".into(),
                vars: "/fw/vars.fd".into(),
            },
            version: "10.0.0".into(),
        }
    }

    fn line(machine: &Machine) -> String {
        machine.arguments(&qemu()).join(" ")
    }

    #[test]
    fn without_a_port_there_is_no_network() {
        let mut machine = Machine::new("a", Arch::X86_64);
        assert!(line(&machine).contains("-nic none"));
        machine.ssh_port = Some(2222);
        assert!(line(&machine).contains("hostfwd=tcp:127.0.0.1:2222-:22"));
    }

    #[test]
    fn secure_boot_takes_the_enforcing_firmware_and_protects_its_variables() {
        let mut machine = Machine::new("a", Arch::X86_64);
        assert!(line(&machine).contains("/fw/code.fd") && line(&machine).contains("smm=off"));
        machine.secure_boot = true;
        let secure = line(&machine);
        assert!(secure.contains("/fw/secure.fd") && secure.contains("smm=on"));
        assert!(secure.contains("property=secure,value=on"));
    }

    #[test]
    fn flushes_are_ignored_only_where_it_was_asked_for() {
        let mut machine = Machine::new("a", Arch::X86_64);
        assert!(line(&machine).contains("cache.no-flush=on"));
        machine.disks[0].cache = Cache::Writeback;
        assert!(!line(&machine).contains("cache.no-flush=on"));
    }

    #[test]
    fn credentials_with_commas_reach_the_guest_whole() {
        let mut machine = Machine::new("a", Arch::X86_64);
        machine.credentials.push(("x".into(), "a,b".into()));
        assert!(line(&machine).contains("value=io.systemd.credential:x=a,,b"));
    }

    #[test]
    fn two_nodes_have_a_cable_and_more_have_a_group() {
        let mut machine = Machine::new("a", Arch::X86_64);
        machine.lan = Some(Lan { port: 7, node: 1, peer: Some(2) });
        let cable = line(&machine);
        assert!(
            cable.contains("local.path=../lan1.sock,remote.type=unix,remote.path=../lan2.sock"),
            "{cable}"
        );
        assert!(cable.contains("netdev=lan,mac=52:54:00:fa:00:01"), "{cable}");
        machine.lan = Some(Lan { port: 7, node: 3, peer: None });
        assert!(line(&machine).contains("mcast=230.0.0.1:7"));
    }

    #[test]
    fn the_firmware_boots_from_the_first_disk() {
        let mut machine = Machine::new("a", Arch::Arm64);
        machine.disks.push(Disk { bus: Bus::Usb, ..Disk::virtio("stick.img") });
        let line = line(&machine);
        assert!(line.contains("drive=disk0,bootindex=1") && line.contains("drive=disk1,bootindex=2"));
        assert!(line.contains("qemu-xhci,id=usb") && line.contains("i6300esb"));
    }
}
