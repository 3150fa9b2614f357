//! A benchmark in a guest: RAUC with a bundle whose image is adaptive (`block-hash-index`), streamed from nginx, beside `farhold
//! delta apply`, on the pairs of images of the benchmark `delta`.
//!
//! RAUC's bytes are those that the web server counts in its answers; processor time is that of all of a service's processes, memory
//! the most that they had resident, summed. The guest's processor is emulated: its seconds compare with each other only.
//! `FARHOLD_BENCH_DIR` names the folder with the pairs, `FARHOLD_BENCH_RAUC` those of them to run (`S farhold-A`).

use anyhow::{Context, Result, ensure};
use qemu_tests::machine::Disk;
use qemu_tests::programs::{Programs, run, source_folder};
use qemu_tests::ssh::free_port;
use qemu_tests::testing::TestVm;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Instant;

/// The pairs by name, and the images in `img` of the benchmark's folder.
const PAIRS: [(&str, &str, &str); 4] =
    [("S", "old", "sm"), ("A", "old", "new"), ("farhold-A", "fold", "fnew"), ("U", "new", "tx")];
/// Smaller blocks than squashfs' own cost fewer bytes where an image is adaptive, as RAUC's manual says.
const SQUASHFS: &str = "-comp zstd -Xcompression-level 19 -b 64k -processors 2";
const CA: &str = "/var/lib/rauc/ca.pem";
/// Waits for a unit in the guest, and sums the peak memory of its processes, in KiB.
const FOLLOW: &str = r#"unit=$1 most=0
while [ "$(systemctl show -P SubState "$unit")" = running ]; do
  sum=0
  for process in $(cat /sys/fs/cgroup/system.slice/"$unit"/cgroup.procs 2>/dev/null); do
    kib=$(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/"$process"/status 2>/dev/null)
    sum=$((sum + ${kib:-0}))
  done
  [ "$sum" -gt "$most" ] && most=$sum
  [ -e /run/stop-following ] && break
  sleep 0.5
done
echo "$most"
"#;

/// What one way of updating took.
struct Took {
    name: &'static str,
    /// Bytes over the link.
    bytes: u64,
    /// Making, on the host, seconds.
    make_s: f64,
    /// In the guest: processor time and wall, seconds; memory, KiB.
    cpu_s: f64,
    wall_s: f64,
    kib: u64,
}

/// The web server, which ends with this.
struct Server {
    process: Child,
    log: PathBuf,
    port: u16,
}

impl Server {
    fn start(folder: &Path) -> Result<Self> {
        let (port, log) = (free_port()?, folder.join("access.log"));
        let root = folder.display();
        let config = format!(
            "daemon off; pid {root}/nginx.pid; error_log {root}/error.log; worker_processes 1; events {{}}\n\
             http {{ log_format sent '$body_bytes_sent'; access_log {root}/access.log sent; server {{ listen 127.0.0.1:{port}; root {root}; }} \
             client_body_temp_path {root}/tmp; proxy_temp_path {root}/tmp; fastcgi_temp_path {root}/tmp; uwsgi_temp_path {root}/tmp; \
             scgi_temp_path {root}/tmp; }}\n"
        );
        let path = folder.join("nginx.conf");
        fs::write(&path, config)?;
        let mut command = Command::new("/usr/sbin/nginx");
        let process = command.arg("-c").arg(&path).spawn().context("start nginx (package nginx-light)")?;
        Ok(Self { process, log, port })
    }

    /// Bytes of all answers so far, without headers.
    fn sent(&self) -> Result<u64> {
        let text = fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))?;
        text.lines().map(|line| line.parse::<u64>().with_context(|| format!("`{line}` is no number"))).sum()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let asked = Command::new("kill").arg(self.process.id().to_string()).status();
        if let Err(error) = asked.and_then(|_| self.process.wait()) {
            eprintln!("nginx: {error}");
        }
    }
}

#[test]
#[ignore = "a benchmark: `make bench`"]
fn beside_rauc() -> Result<()> {
    let folder = tempfile::Builder::new().prefix("farhold-rauc-").tempdir()?;
    let work = std::env::var_os("FARHOLD_BENCH_DIR")
        .map_or_else(|| source_folder().join("build/bench-delta"), PathBuf::from);
    let wanted = std::env::var("FARHOLD_BENCH_RAUC").unwrap_or_else(|_| "S farhold-A".to_owned());
    let disk = bake(folder.path())?;
    certificate(folder.path())?;
    for name in wanted.split_whitespace() {
        let (_, old, new) =
            PAIRS.iter().find(|pair| pair.0 == name).with_context(|| format!("no pair {name}"))?;
        let image = |name: &str| work.join("img").join(format!("{name}.erofs"));
        // A bundle is never written over another pair's.
        let own = folder.path().join(name);
        fs::create_dir(&own)?;
        for file in ["ca.pem", "key.pem"] {
            fs::copy(folder.path().join(file), own.join(file))?;
        }
        compare(name, &disk, (&image(old), &image(new)), &own)?;
        fs::remove_dir_all(&own)?;
    }
    Ok(())
}

/// The image of the guest.
fn bake(folder: &Path) -> Result<PathBuf> {
    let programs = Programs::from_environment()?;
    let profile = source_folder().join("qemu-tests/tests/data/rauc/beside-rauc.yaml");
    let (lock, out) = (folder.join("beside-rauc.lock"), folder.join("beside-rauc"));
    for (word, target) in [("lock", &lock), ("build", &out)] {
        let mut command = programs.farhold();
        command
            .arg(word)
            .arg(&profile)
            .args(programs.target())
            .args(programs.artefacts())
            .arg("--out")
            .arg(target);
        command.arg("--recipes").arg(source_folder().join("recipes"));
        if word == "build" {
            command.arg("--lock").arg(&lock).arg("--keys").arg(&programs.keys);
        }
        run(&mut command)?;
    }
    Ok(out.join("disk.img"))
}

fn certificate(folder: &Path) -> Result<()> {
    let (key, certificate) = (folder.join("key.pem"), folder.join("ca.pem"));
    let mut command = Command::new("openssl");
    command.args([
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "3650",
        "-subj",
        "/CN=bench",
        "-keyout",
    ]);
    run(command.arg(key).arg("-out").arg(certificate)).map(drop)
}

/// The bundle of `new`, and how long it took, seconds.
fn bundle(new: &Path, folder: &Path) -> Result<(PathBuf, f64)> {
    let (content, bundle) = (folder.join("content"), folder.join("new.raucb"));
    fs::create_dir(&content)?;
    fs::copy(new, content.join("rootfs.img"))?;
    fs::write(
        content.join("manifest.raucm"),
        "[update]\ncompatible=farhold-bench\nversion=2\n[bundle]\nformat=verity\n\
         [image.rootfs]\nfilename=rootfs.img\nadaptive=block-hash-index\n",
    )?;
    let begun = Instant::now();
    let mut command = Command::new("rauc");
    command.arg("bundle").arg(format!("--mksquashfs-args={SQUASHFS}"));
    command.arg("--cert").arg(folder.join("ca.pem")).arg("--key").arg(folder.join("key.pem"));
    run(command.arg(&content).arg(&bundle))?;
    fs::remove_dir_all(&content)?;
    Ok((bundle, begun.elapsed().as_secs_f64()))
}

fn compare(name: &str, disk: &Path, (old, new): (&Path, &Path), folder: &Path) -> Result<()> {
    eprintln!("{name}: making the bundle and the delta");
    let (bundle, bundle_s) = bundle(new, folder)?;
    let programs = Programs::from_environment()?;
    let (delta, begun) = (folder.join("new.delta"), Instant::now());
    run(programs.farhold().args(["delta", "make"]).args([old, new]).arg("--out").arg(&delta))?;
    let delta_s = begun.elapsed().as_secs_f64();

    let blank = folder.join("blank.img");
    fs::File::create(&blank)?.set_len(fs::metadata(new)?.len())?;
    let vm = TestVm::create_with("rauc", &[disk, old, &blank], |machine| {
        machine.disks.extend(["disk1.img", "disk2.img"].map(Disk::virtio));
        machine.kernel_words.push("rauc.slot=A".to_owned());
    })?;
    for (index, image) in [(1, old), (2, new)] {
        // Slots as large as what they hold: RAUC hashes all of a slot.
        let disk = fs::File::options().write(true).open(vm.folder().join(format!("disk{index}.img")))?;
        disk.set_len(fs::metadata(image)?.len())?;
    }
    vm.boot()?;
    let server = Server::start(folder)?;
    let follow = folder.join("follow");
    fs::write(&follow, FOLLOW)?;
    for (from, to) in [(folder.join("ca.pem"), CA), (follow, "/var/lib/rauc/follow")] {
        let port = server.port;
        fs::copy(&from, folder.join("file")).with_context(|| format!("copy {}", from.display()))?;
        vm.sh(&format!("mkdir -p /var/lib/rauc && curl -sf http://10.0.2.2:{port}/file -o {to}"))?;
    }
    let rauc = through_rauc(&vm, &server, new, bundle_s)?;
    eprintln!("{name}: RAUC fetched {} bytes", rauc.bytes);
    let farhold = through_farhold(&vm, &server, (&delta, new), delta_s)?;
    print(name, fs::metadata(new)?.len(), fs::metadata(&bundle)?.len(), &[rauc, farhold]);
    Ok(())
}

/// Processor time of a unit since it began, seconds.
fn cpu_s(vm: &TestVm, unit: &str) -> Result<f64> {
    let text = vm.sh(&format!("systemctl show -P CPUUsageNSec {unit}"))?;
    Ok(text.parse::<f64>().with_context(|| format!("{unit} took `{text}`"))? / 1e9)
}

fn through_rauc(vm: &TestVm, server: &Server, new: &Path, make_s: f64) -> Result<Took> {
    vm.sh("modprobe -a nbd loop squashfs && systemctl restart rauc.service")?;
    let (before, sent, begun) = (cpu_s(vm, "rauc.service")?, server.sent()?, Instant::now());
    let port = server.port;
    let kib = vm.sh(&format!(
        "rm -f /run/stop-following; sh /var/lib/rauc/follow rauc.service > /run/kib 2>&1 & \
         rauc install http://10.0.2.2:{port}/new.raucb >&2; code=$?; touch /run/stop-following; wait; cat /run/kib; exit $code"
    ))?;
    let wall_s = begun.elapsed().as_secs_f64();
    let took = Took {
        name: "RAUC, adaptive",
        bytes: server.sent()? - sent,
        make_s,
        cpu_s: cpu_s(vm, "rauc.service")? - before,
        wall_s,
        kib: kib.trim().parse().with_context(|| format!("memory `{kib}`"))?,
    };
    vm.sh("sync /dev/disk/by-id/virtio-disk2")?;
    same(vm, "/dev/disk/by-id/virtio-disk2", new)?;
    Ok(took)
}

fn through_farhold(vm: &TestVm, server: &Server, (delta, new): (&Path, &Path), make_s: f64) -> Result<Took> {
    let folder = delta.parent().context("the delta's folder")?;
    fs::copy(std::env::var_os("FARHOLD").context("FARHOLD is not set")?, folder.join("farhold"))?;
    let port = server.port;
    vm.sh(&format!(
        "cd /var/tmp && curl -sf -O http://10.0.2.2:{port}/farhold -O http://10.0.2.2:{port}/new.delta && chmod +x farhold"
    ))?;
    let begun = Instant::now();
    let kib = vm.sh(
        "rm -f /run/stop-following; systemd-run -q --unit=apply -p RemainAfterExit=yes -p Nice=0 /var/tmp/farhold delta apply /dev/disk/by-id/virtio-disk1 \
         /var/tmp/new.delta --out /var/tmp/new && sh /var/lib/rauc/follow apply.service && \
         test \"$(systemctl show -P Result apply)\" = success",
    )?;
    let wall_s = begun.elapsed().as_secs_f64();
    let kib = kib.trim().parse().with_context(|| format!("memory `{kib}`"))?;
    let took = Took {
        name: "farhold",
        bytes: fs::metadata(delta)?.len(),
        make_s,
        cpu_s: cpu_s(vm, "apply")?,
        wall_s,
        kib,
    };
    same(vm, "/var/tmp/new", new)?;
    Ok(took)
}

/// Compares what `path` in the guest begins with with all of `image`.
fn same(vm: &TestVm, path: &str, image: &Path) -> Result<()> {
    let len = fs::metadata(image)?.len();
    let here = run(Command::new("sha256sum").arg(image))?;
    let there = vm.sh(&format!("test -e {path} && head -c {len} {path} | sha256sum"))?;
    let word = |text: &str| text.split_whitespace().next().unwrap_or_default().to_owned();
    ensure!(word(&here) == word(&there), "{path} has other bytes than {}", image.display());
    Ok(())
}

fn print(name: &str, image: u64, bundle: u64, took: &[Took]) {
    println!(
        "\n{name}: image {image} bytes, RAUC bundle {bundle} bytes; in a guest of an emulated processor"
    );
    println!(
        "{:16} {:>11} {:>7} {:>9} {:>9} {:>9} {:>7}",
        "method", "bytes", "ratio", "make s", "apply cpu", "wall s", "MiB"
    );
    let least = took.iter().map(|took| took.bytes).max().unwrap_or(1);
    for Took { name, bytes, make_s, cpu_s, wall_s, kib } in took {
        let (ratio, mib) = (*bytes as f64 / least as f64, *kib as f64 / 1024.0);
        println!("{name:16} {bytes:>11} {ratio:>7.3} {make_s:>9.1} {cpu_s:>9.1} {wall_s:>9.1} {mib:>7.1}");
    }
}
