//! A life of an ESP: every transition of two updates, made in a guest and recorded.
//!
//! The guest's shell makes the same system calls, in the same order, as the agent does, which itself is kept from
//! running, so that nobody else writes; the counting of boots is systemd-boot's own, through the firmware. Each order is that of decision 0020. [`Order::Renames`] is the one that it
//! replaced, kept to show that the replay finds what is wrong with it.

use crate::console::Console;
use crate::disk::{DiskImage, copy_sparse};
use crate::machine::{Cache, Disk};
use crate::power_cut::judge::LOADERS;
use crate::power_cut::record::{Facts, Known, Recorder, Recording, factory_files, section};
use crate::power_cut::trace::{Kind, Loaders};
use crate::programs::build_folder;
use crate::testing::TestVm;
use crate::vm::BOOT_PATIENCE;
use crate::workshop::Workshop;
use anyhow::{Context, Result, ensure};
use formats::boot::{BOOT_FACTS, BootFacts};
use formats::entry::{EntryName, FOLDER, Tries};
use formats::layout::Slot;
use std::path::{Path, PathBuf};

/// Where the second UKI and the new systemd-boot stand on the second disk, bytes.
const SECOND: u64 = 128 << 20;
const LOADER: u64 = 256 << 20;
const FILES_BYTES: u64 = 288 << 20;
/// Names beside the factory's, so that the names which come and go do not all stand in one sector: folders of devices
/// in use look like this.
const NEIGHBOURS: [&str; 7] = [
    "recovery_1.0.0.efi",
    "FSCK0000.REC",
    "FSCK0001.REC",
    "FSCK0002.REC",
    "FSCK0003.REC",
    "FSCK0004.REC",
    "FSCK0005.REC",
];

/// The console when the firmware starts systemd-boot. Later signs of a boot may be missing on it.
const STARTS: &str = "BdsDxe: starting";
/// How often a login is waited for; each time takes two minutes at most.
const LOGINS: usize = 4;
/// Folder in which [`Order::Renames`] writes a UKI before it is an entry.
const STAGED: &str = "EFI/farhold";

/// What every transition begins with: the ESP mounted as the agent does, the state partition frozen.
const PRELUDE: &str = r#"set -eu
esp=/run/lab-esp; entries=$esp/EFI/Linux; mkdir -p $esp
mount -t vfat -o nosuid,nodev,noexec,noatime,errors=remount-ro,umask=0077 "$(readlink -f /dev/disk/by-partlabel/farhold-esp)" $esp
fsfreeze --freeze /var
trap 'test $? = 0 || ls $entries >&2; fsfreeze --unfreeze /var; umount $esp' EXIT
durable() { sync -f "$1"; sync "$1"; }
place() {
  dd if=/dev/zero of=$entries/$1 bs=4096 count=1 conv=fsync status=none; sync $entries
  dd if=/run/uki of=$entries/$1 bs=1M iflag=skip_bytes oflag=seek_bytes skip=512 seek=512 conv=notrunc,fsync status=none
  durable $entries
  dd if=/run/uki of=$entries/$1 bs=512 count=1 conv=notrunc,fsync status=none
}
retire() {
  dd if=/dev/zero of=$entries/$1 bs=512 count=1 conv=notrunc,fsync status=none
  rm $entries/$1; durable $entries
}
name() { mv -T $entries/$1 $entries/$2; durable $entries; }
replace() {
  dd if=/run/uki of=$esp/$1.new bs=1M conv=fsync status=none; durable $esp/${1%/*}
  exec 3<$esp/$1
  mv -T $esp/$1.new $esp/$1; durable $esp/${1%/*}
  exec 3<&-; durable $esp/${1%/*}
}
stage() {
  mkdir -p $esp/EFI/farhold
  dd if=/run/uki of=$esp/EFI/farhold/new.efi bs=1M conv=fsync status=none; durable $esp/EFI/farhold
}
rename_in() { mv -T $esp/EFI/farhold/new.efi $entries/$1; durable $entries; durable $esp/EFI/farhold; }
remove() { rm $entries/$1; durable $entries; }
"#;

/// How entries come and go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// Decision 0040: the first sector of a UKI is written last and blanked first.
    FirstSector,
    /// A UKI is renamed into the folder, and unlinked.
    Renames,
}

/// The names of one release's entry.
struct Names {
    digits: String,
    version: &'static str,
}

impl Names {
    fn with(&self, tries: Option<(u32, u32)>) -> String {
        let tries = tries.map(|(left, done)| Tries { left, done });
        EntryName { tries, ..EntryName::uncounted(self.version, &self.digits) }.file_name()
    }
}

/// A machine with two releases in its slots, a third one's UKI and a new systemd-boot, not started.
pub struct Life {
    vm: TestVm,
    recorder: Recorder,
    names: [Names; 3],
    loader_bytes: usize,
    uki_bytes: usize,
    before: PathBuf,
}

impl Life {
    /// Builds the second release and makes the machine.
    ///
    /// # Errors
    /// If there is no image under test, or the build fails.
    pub fn prepare(work: &Path) -> Result<Self> {
        let newer = DiskImage::new(Workshop::new(work)?.bake("1.0.1")?.join("disk.img"));
        let (digits, uki) = entry_of(&newer)?;
        let third = third(&uki)?;
        let image = build_folder()?.join("disk.img");
        let (first_digits, first) = entry_of(&DiskImage::new(&image))?;
        let mut loader = newer.esp_read(LOADERS[0])?;
        let factory_loader = loader.len();
        // A file of another length and other clusters that the firmware starts all the same.
        loader.extend([0x5a; 512]);
        let files = work.join("files.img");
        write_files(&files, [(0, &uki), (SECOND, &third), (LOADER, &loader)])?;
        let vm = TestVm::create_with("device", &[&image, &files], |machine| {
            machine.kernel_words.push("systemd.mask=farhold-agent.service".into());
            machine.disks[0].cache = Cache::Logged;
            machine.disks.push(Disk::virtio("files.img"));
        })?;
        let disk = vm.disk(0)?;
        for label in [Slot::root_label, Slot::verity_label] {
            disk.copy_from(&newer, label(Slot::A), label(Slot::B))?;
        }
        for name in NEIGHBOURS {
            disk.esp_write(&format!("{FOLDER}/{name}"), b"not an entry")?;
        }
        let mut known = factory_files(&disk)?;
        let (loader_bytes, uki_bytes) = (loader.len(), uki.len());
        ensure!(loader_bytes > factory_loader, "the new systemd-boot is not longer");
        known.push(Known { name: "systemd-boot, new".into(), bytes: loader, kind: Kind::Loader });
        known.push(Known::uki(first, "1.0.0", &first_digits)?);
        known.push(Known::uki(uki, "1.0.1", &digits)?);
        known.push(Known::uki(third, "1.0.2", "cccccccc")?);
        let recorder = Recorder::begin(&vm, &known)?;
        let before = work.join("before.img");
        copy_sparse(disk.path(), &before)?;
        let names = |version, digits: &str| Names { version, digits: digits.to_owned() };
        let names = [names("1.0.0", &first_digits), names("1.0.1", &digits), names("1.0.2", "cccccccc")];
        Ok(Self { vm, recorder, names, loader_bytes, uki_bytes, before })
    }

    /// The disk before its first boot, in the folder given to [`Life::prepare`].
    pub fn before(&self) -> &Path {
        &self.before
    }

    /// Lives it.
    ///
    /// # Errors
    /// If a transition fails, or a boot runs another release than it must.
    pub fn record(mut self, order: Order) -> Result<Recording> {
        self.vm.power_on()?;
        up(&self.vm, &mut self.vm.console()?)?;
        runs(&self.vm, "1.0.0")?;
        match order {
            Order::FirstSector => self.two_updates()?,
            Order::Renames => self.renames()?,
        }
        self.vm.cut()?;
        self.recorder.end()
    }

    fn two_updates(&mut self) -> Result<()> {
        let [old, new, third] = [0, 1, 2].map(|n| self.names[n].digits.clone());
        let first = &[old.as_str(), new.as_str()];
        let second = &[new.as_str(), third.as_str()];
        let of = |life: &Self, n: usize, tries| life.names[n].with(tries);
        let entry = of(self, 1, Some((3, 0)));
        self.script("place 1.0.1, 3 tries", first, &format!("place {entry}"), Some((0, self.uki_bytes)))?;
        self.reboot("firmware counts a try", first, "1.0.1")?;
        let rearm = format!("name {} {}", of(self, 1, Some((2, 1))), of(self, 1, Some((3, 0))));
        self.script("re-arm 1.0.1", first, &rearm, None)?;
        self.reboot("firmware counts a try again", first, "1.0.1")?;
        let commit = format!("name {} {}", of(self, 1, Some((2, 1))), of(self, 1, None));
        self.script("commit 1.0.1", first, &commit, None)?;
        self.script("retire 1.0.0", first, &format!("retire {}", of(self, 0, None)), None)?;
        let entry = of(self, 2, Some((3, 0)));
        self.script(
            "place 1.0.2, 3 tries",
            second,
            &format!("place {entry}"),
            Some((SECOND, self.uki_bytes)),
        )?;
        let spend = format!("name {entry} {}", of(self, 2, Some((0, 1))));
        self.script("spend 1.0.2", second, &spend, None)?;
        let bless = format!("name {} {}", of(self, 2, Some((0, 1))), of(self, 2, None));
        self.script("bless 1.0.2", second, &bless, None)?;
        self.script(
            "retire 1.0.2, which comes first",
            second,
            &format!("retire {}", of(self, 2, None)),
            None,
        )?;
        for path in [LOADERS[1], LOADERS[0]] {
            let bytes = Some((LOADER, self.loader_bytes));
            self.script(&format!("replace {path}"), &[new.as_str()], &format!("replace {path}"), bytes)?;
        }
        restart(&self.vm)?;
        runs(&self.vm, "1.0.1")
    }

    fn renames(&mut self) -> Result<()> {
        let [old, new, _] = [0, 1, 2].map(|n| self.names[n].digits.clone());
        let both = &[old.as_str(), new.as_str()];
        let (counted, blessed) = (self.names[1].with(Some((3, 0))), self.names[1].with(None));
        self.script("stage 1.0.1 outside", both, "stage", Some((0, self.uki_bytes)))?;
        self.script("rename 1.0.1 in, 3 tries", both, &format!("rename_in {counted}"), None)?;
        self.script("bless 1.0.1", both, &format!("name {counted} {blessed}"), None)?;
        self.script("unlink 1.0.1, which comes first", both, &format!("remove {blessed}"), None)?;
        // Again, with a cut in the rename that leaves both names.
        self.script("stage 1.0.1 again", both, "stage", Some((0, self.uki_bytes)))?;
        let extent = self.recorder.folder(STAGED)?;
        kept(&self.vm, extent, "if=$esp of=/run/kept skip")?;
        self.script("rename 1.0.1 in again", both, &format!("rename_in {counted}"), None)?;
        let vm = &self.vm;
        let facts = Facts { name: "the cut: the old name stands", complete: both, loaders: Loaders::Both };
        self.recorder.step(facts, vm, || kept(vm, extent, "of=$esp if=/run/kept seek"))?;
        self.script("bless 1.0.1 again", both, &format!("name {counted} {blessed}"), None)?;
        self.script("unlink 1.0.0", both, &format!("remove {}", self.names[0].with(None)), None)?;
        self.script("stage 1.0.2 over the old name", &[&new], "stage", Some((SECOND, self.uki_bytes)))
    }

    /// Makes one transition by a shell in the guest; `file` are bytes of the second disk that it needs.
    fn script(
        &mut self,
        name: &str,
        complete: &[&str],
        script: &str,
        file: Option<(u64, usize)>,
    ) -> Result<()> {
        if let Some((at, bytes)) = file {
            let copy = "dd if=/dev/vdb of=/run/uki bs=1M iflag=skip_bytes,count_bytes status=none";
            self.vm.sh(&format!("{copy} skip={at} count={bytes}"))?;
        }
        let loaders = if script.starts_with("replace") { Loaders::One } else { Loaders::Both };
        let (vm, facts) = (&self.vm, Facts { name, complete, loaders });
        self.recorder.step(facts, vm, || vm.sh(&format!("{PRELUDE}{script}\n")).map(drop))
    }

    /// Restarts from within; the release that runs then must be this one.
    fn reboot(&mut self, name: &str, complete: &[&str], version: &str) -> Result<()> {
        let (vm, facts) = (&self.vm, Facts { name, complete, loaders: Loaders::Both });
        self.recorder.step(facts, vm, || restart(vm))?;
        runs(vm, version)
    }
}

/// Restarts the guest.
fn restart(vm: &TestVm) -> Result<()> {
    let mut console = vm.console()?;
    while console.find(&[STARTS])?.is_some() {}
    // The connection may break before the command's status comes back.
    vm.run("systemctl --no-block reboot")?;
    up(vm, &mut console)
}

/// Waits for the system, which tells nobody that it is up, because no agent runs.
fn up(vm: &TestVm, console: &mut Console) -> Result<()> {
    vm.wait_console(console, &[STARTS], BOOT_PATIENCE)?;
    let mut tries = (0..LOGINS).map(|_| vm.run("true"));
    tries.find(Result::is_ok).context("wait for a login: there was none")?.map(drop)
}

/// The release that runs must be this one. No agent runs that could tell.
fn runs(vm: &TestVm, version: &str) -> Result<()> {
    let facts: BootFacts =
        serde_json::from_str(&vm.sh(&format!("cat {BOOT_FACTS}"))?).context("read the boot facts")?;
    ensure!(facts.version == version, "{} runs, but {version} must", facts.version);
    Ok(())
}

/// Copies sectors of the ESP that is not mounted, to memory or back.
fn kept(vm: &TestVm, [first, count]: [u32; 2], copy: &str) -> Result<()> {
    let find = "esp=$(readlink -f /dev/disk/by-partlabel/farhold-esp)";
    vm.sh(&format!("{find}; dd {copy}={first} count={count} bs=512 conv=fsync,notrunc status=none")).map(drop)
}

/// First digits of the roothash, and bytes, of an image's UKI.
fn entry_of(image: &DiskImage) -> Result<(String, Vec<u8>)> {
    let names = image.esp_list(FOLDER)?;
    let (name, entry) = names
        .iter()
        .find_map(|name| Some((name, EntryName::parse(name)?)))
        .with_context(|| format!("no UKI in {}", image.path().display()))?;
    Ok((entry.roothash8, image.esp_read(&format!("{FOLDER}/{name}"))?))
}

/// A UKI like another one, of the next version, with nothing in common behind its os-release. It is never started.
fn third(uki: &[u8]) -> Result<Vec<u8>> {
    let [start, bytes] = section(uki, ".osrel").context("a UKI has no os-release")?;
    let range = usize::try_from(start)?..usize::try_from(start + bytes)?;
    let text = String::from_utf8_lossy(uki.get(range.clone()).context("a UKI is cut off")?).into_owned();
    let next = text.replace("1.0.1", "1.0.2");
    ensure!(next != text && next.len() == text.len(), "the UKI's os-release does not name 1.0.1");
    let mut out = uki.to_vec();
    let end = range.end.next_multiple_of(512);
    out[range].copy_from_slice(next.as_bytes());
    out[end..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    Ok(out)
}

fn write_files(path: &Path, files: [(u64, &Vec<u8>); 3]) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let what = || format!("write {}", path.display());
    let file = std::fs::File::create(path).with_context(what)?;
    file.set_len(FILES_BYTES).with_context(what)?;
    for (at, bytes) in files {
        file.write_all_at(bytes, at).with_context(what)?;
    }
    Ok(())
}
