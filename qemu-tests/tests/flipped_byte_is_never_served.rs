//! A byte flipped anywhere in the active slot is never served: a read of the block fails, or the machine stops.

use anyhow::{Context, Result, ensure};
use formats::layout::Slot;
use formats::verity::{BLOCK, Parameters};
use qemu_tests::testing::TestVm;
use qemu_tests::vm::Vm;

const ROOT: &str = Slot::A.root_label();
const VERITY: &str = Slot::A.verity_label();
/// Data blocks whose hashes stand in one block.
const GROUP: u64 = 128;

#[test]
fn flipped_byte_is_never_served() -> Result<()> {
    let vm = TestVm::create("device")?;
    let disk = vm.disk(0)?;
    let parameters = Parameters::parse(&disk.read(VERITY, 0, BLOCK)?)?;
    let module = largest_module(&vm, parameters.data_blocks)?;
    println!("{module:?}");

    // One byte in the file's data, and one in the hash block of another stretch of the same file.
    let first_group = module.start.div_ceil(GROUP);
    ensure!((first_group + 2) * GROUP <= module.start + module.blocks, "no module is large enough");
    let (data, hashed) = (first_group * GROUP + 5, (first_group + 1) * GROUP);
    let leaves = parameters.hash_area_bytes() / BLOCK as u64 - parameters.data_blocks.div_ceil(GROUP);
    disk.flip_byte(ROOT, data * BLOCK as u64 + 77)?;
    disk.flip_byte(VERITY, (leaves + first_group + 1) * BLOCK as u64 + 33)?;
    vm.boot()?;
    let path =
        vm.sh(&format!("find /usr/lib/modules -name '{}.ko' | head -1", module.name.replace('_', "?")))?;
    for (block, damaged) in [
        (data - 1, false),
        (data, true),
        (data + 1, false),
        (hashed - 1, false),
        (hashed, true),
        (hashed + GROUP - 1, true),
    ] {
        reading_fails(&vm, &path, block - module.start, damaged)?;
    }
    let log = vm.sh("dmesg | grep -c 'verity.*is corrupted'")?;
    ensure!(log.trim() != "0", "the kernel did not say what is damaged");
    vm.cut()?;
    disk.flip_byte(ROOT, data * BLOCK as u64 + 77)?;
    disk.flip_byte(VERITY, (leaves + first_group + 1) * BLOCK as u64 + 33)?;

    // Without the topmost hash block, the superblock, or the file system's own first block there is no root at all.
    for (label, at) in [(VERITY, BLOCK as u64 + 9), (VERITY, 72), (ROOT, 1024)] {
        disk.flip_byte(label, at)?;
        stops(&vm).with_context(|| format!("with byte {at} of {label} flipped"))?;
        disk.flip_byte(label, at)?;
    }
    Ok(())
}

fn reading_fails(vm: &Vm, path: &str, block: u64, damaged: bool) -> Result<()> {
    // Direct: the kernel's read-ahead must not read the neighbour for us.
    let outcome = vm.run(&format!(
        "echo 3 > /proc/sys/vm/drop_caches; dd if={path} bs={BLOCK} skip={block} count=1 | wc -c"
    ))?;
    let served = outcome.stdout.trim() == BLOCK.to_string();
    ensure!(served != damaged, "block {block} of {path}, damaged: {damaged}: {outcome:?}");
    if damaged {
        ensure!(outcome.stderr.contains("Input/output error"), "{outcome:?}");
        ensure!(outcome.stdout.trim() == "0", "part of a damaged block was served: {outcome:?}");
    }
    Ok(())
}

fn stops(vm: &TestVm) -> Result<()> {
    let line = vm.boot_to_stop()?;
    ensure!(line.contains("slot a:") && line.contains("Next:"), "the message does not say enough: {line}");
    Ok(())
}

/// A kernel module in the image: a file that a boot does not read, found without a boot.
#[derive(Debug)]
struct Module {
    name: String,
    /// First data block of the image that holds it.
    start: u64,
    blocks: u64,
}

/// The largest module. In an uncompressed EROFS image a file's blocks stand in a row and begin at a block; a module is
/// a relocatable ELF file (elf(5)) with `name=` in its `.modinfo`, and its section headers at its end tell its size.
fn largest_module(vm: &Vm, data_blocks: u64) -> Result<Module> {
    let disk = vm.disk(0)?;
    let image = disk.read(ROOT, 0, usize::try_from(data_blocks)? * BLOCK)?;
    let blocks = || image.chunks_exact(BLOCK).zip(0u64..);
    let sizes = blocks().filter_map(|(block, start)| Some((module_bytes(block)? / BLOCK as u64, start)));
    let candidates = sizes.filter(|(size, start)| start + size <= data_blocks);
    let (size, start) = candidates.max().context("the image has no kernel modules")?;
    let from = usize::try_from(start)? * BLOCK;
    let file = &image[from..from + usize::try_from(size)? * BLOCK];
    let name = file.windows(6).position(|w| w == b"\0name=").context("the module has no name")? + 6;
    let rest = &file[name..];
    let end = rest.iter().position(|b| *b == 0).context("the module's name does not end")?;
    Ok(Module { name: String::from_utf8(rest[..end].to_vec())?, start, blocks: size })
}

/// Bytes of a relocatable ELF file that begins with this block.
fn module_bytes(block: &[u8]) -> Option<u64> {
    const RELOCATABLE: u16 = 1;
    let half = |at: usize| u16::from_le_bytes([block[at], block[at + 1]]);
    let headers = u64::from_le_bytes(block[40..48].try_into().ok()?);
    let is_module = &block[..6] == b"\x7fELF\x02\x01" && half(16) == RELOCATABLE && headers < 1 << 26;
    is_module.then(|| headers + u64::from(half(58)) * u64::from(half(60)))
}
