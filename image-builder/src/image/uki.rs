//! Unified kernel images: a kernel, its initrd and its command line behind the systemd EFI stub, in one PE file.
//!
//! Follows the UAPI group's "Unified Kernel Image" specification and writes what systemd's `ukify` 257 writes. Knows
//! nothing of slots, keys or where the file goes.

use super::pe::{self, Pe, PeError};

const SBAT_HEADER: &str = "sbat,1,SBAT Version,sbat,1,https://github.com/rhboot/shim/blob/main/SBAT.md\n";
const SBAT_UKI: &str = "uki,1,UKI,uki,1,https://uapi-group.org/specifications/specs/unified_kernel_image/\n";

/// What goes into a UKI.
#[derive(Clone, Copy, Debug)]
pub struct Parts<'a> {
    /// `linux<arch>.efi.stub` of systemd.
    pub stub: &'a [u8],
    /// Kernel, a PE image itself.
    pub linux: &'a [u8],
    /// Initial file system, an archive the kernel can unpack.
    pub initrd: &'a [u8],
    /// Kernel command line.
    pub cmdline: &'a str,
    /// Contents of os-release, by which boot entries are named and sorted.
    pub os_release: &'a str,
    /// Kernel release, as `uname -r` will say.
    pub uname: &'a str,
    /// Device tree for boards whose firmware brings none.
    pub dtb: Option<&'a [u8]>,
}

/// Why a UKI was not made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UkiError {
    /// The stub cannot be extended.
    #[error("EFI stub")]
    Stub(#[source] PeError),
    /// The kernel is no PE image: firmware could not start it.
    #[error("kernel image {0}")]
    Kernel(String, #[source] PeError),
    /// A section cannot be added.
    #[error("add section {0}")]
    Section(&'static str, #[source] PeError),
}

/// Puts the parts together.
///
/// # Errors
/// [`UkiError`] if stub or kernel are not what they must be.
pub fn assemble(parts: &Parts) -> Result<Vec<u8>, UkiError> {
    let kernel = Pe::parse(parts.linux.to_vec()).map_err(|e| UkiError::Kernel(parts.uname.to_owned(), e))?;
    let mut image = Pe::parse(parts.stub.to_vec()).map_err(UkiError::Stub)?;
    image.prepare().map_err(UkiError::Stub)?;
    let data = [
        (".osrel", parts.os_release.as_bytes(), pe::DATA),
        (".cmdline", parts.cmdline.as_bytes(), pe::DATA),
        (".dtb", parts.dtb.unwrap_or_default(), pe::DATA),
        (".uname", parts.uname.as_bytes(), pe::DATA),
        // Kernels without the EFI boot protocol of today are run where they lie, so this one is code.
        (".linux", parts.linux, pe::CODE),
        (".initrd", parts.initrd, pe::DATA),
    ];
    for (name, contents, kind) in data.into_iter().filter(|(_, contents, _)| !contents.is_empty()) {
        image.add(name, contents, kind).map_err(|e| UkiError::Section(name, e))?;
    }
    let sbat = merged_sbat([&image, &kernel]);
    image.replace(".sbat", sbat.as_bytes()).map_err(|e| UkiError::Section(".sbat", e))?;
    // Stub and kernel must make the same promise, else firmware that enforces it will not start the kernel.
    if !kernel.nx_compat() {
        image.clear_nx_compat();
    }
    image.finish().map_err(UkiError::Stub)
}

/// Another UKI with the stub, kernel, device tree and revocation data of `uki`.
///
/// # Errors
/// [`UkiError`] if it is no UKI.
pub fn renew(uki: &[u8], cmdline: &str, os_release: &str, initrd: &[u8]) -> Result<Vec<u8>, UkiError> {
    let old = Pe::parse(uki.to_vec()).map_err(UkiError::Stub)?;
    let mut image = old.clone();
    image.cut_from(".osrel").map_err(|e| UkiError::Section(".osrel", e))?;
    let kept = |name| old.section_data(name).unwrap_or_default();
    let data = [
        (".osrel", os_release.as_bytes(), pe::DATA),
        (".cmdline", cmdline.as_bytes(), pe::DATA),
        (".dtb", kept(".dtb"), pe::DATA),
        (".uname", kept(".uname"), pe::DATA),
        (".linux", kept(".linux"), pe::CODE),
        (".initrd", initrd, pe::DATA),
    ];
    for (name, contents, kind) in data.into_iter().filter(|(_, contents, _)| !contents.is_empty()) {
        image.add(name, contents, kind).map_err(|e| UkiError::Section(name, e))?;
    }
    image.finish().map_err(UkiError::Stub)
}

/// Revocation data of all parts, so that a revoked kernel revokes the whole.
fn merged_sbat(images: [&Pe; 2]) -> String {
    let mut merged = SBAT_HEADER.to_owned();
    for image in images {
        let text = image.section_data(".sbat").map(String::from_utf8_lossy).unwrap_or_default();
        let mut lines = text.trim_end_matches('\0').lines();
        if lines.next().is_some_and(|first| first.starts_with("sbat,")) {
            for line in lines {
                merged.push_str(line);
                merged.push('\n');
            }
        }
    }
    merged.push_str(SBAT_UKI);
    merged.push('\0');
    merged
}

#[cfg(test)]
mod tests {
    use super::super::pe::tests::sample;
    use super::*;

    fn parts<'a>(stub: &'a [u8], linux: &'a [u8]) -> Parts<'a> {
        Parts {
            stub,
            linux,
            initrd: b"initrd",
            cmdline: "roothash=0",
            os_release: "ID=debian\n",
            uname: "6.12.1",
            dtb: None,
        }
    }

    #[test]
    fn sections_stand_in_order_and_sbat_names_all_parts() {
        let stub = sample(b"sbat,1,x\nstub,1\n");
        let linux = sample(b"sbat,1,x\nlinux,1\n");
        let image = Pe::parse(assemble(&parts(&stub, &linux)).unwrap()).unwrap();
        let names: Vec<_> = image.sections().into_iter().map(|s| s.name).collect();
        assert_eq!(names, [".text", ".sbat", ".osrel", ".cmdline", ".uname", ".linux", ".initrd"]);
        let sbat = String::from_utf8(image.section_data(".sbat").unwrap().to_vec()).unwrap();
        assert_eq!(sbat, format!("{SBAT_HEADER}stub,1\nlinux,1\n{SBAT_UKI}\0"));
        assert_eq!(image.section_data(".linux"), Some(linux.as_slice()));
        assert!(image.nx_compat());
    }

    #[test]
    fn a_renewed_image_is_as_if_it_had_been_assembled() {
        let (stub, linux) = (sample(b"sbat,1,x\nstub,1\n"), sample(b"sbat,1,x\nlinux,1\n"));
        let old = parts(&stub, &linux);
        let new = Parts { initrd: b"another", cmdline: "quiet", os_release: "ID=x\n", ..old };
        let renewed = renew(&assemble(&old).unwrap(), "quiet", "ID=x\n", b"another").unwrap();
        // Only the sum of all data in the header, which nothing reads, still counts the old sections.
        let (renewed, wanted) = (Pe::parse(renewed).unwrap(), Pe::parse(assemble(&new).unwrap()).unwrap());
        assert_eq!(renewed.sections(), wanted.sections());
        for section in wanted.sections() {
            assert_eq!(renewed.section_data(&section.name), wanted.section_data(&section.name));
        }
        assert!(renew(&stub, "", "", b"").is_err());
    }

    #[test]
    fn a_kernel_without_nx_takes_the_promise_from_the_whole() {
        let stub = sample(b"");
        let mut kernel = Pe::parse(sample(b"")).unwrap();
        kernel.clear_nx_compat();
        let linux = kernel.finish().unwrap();
        assert!(!Pe::parse(assemble(&parts(&stub, &linux)).unwrap()).unwrap().nx_compat());
    }

    #[test]
    fn a_compressed_kernel_is_named_as_such() {
        let error = assemble(&parts(&sample(b""), b"\x1f\x8b not PE")).unwrap_err();
        assert_eq!(error, UkiError::Kernel("6.12.1".into(), PeError::NotPe("no MZ signature")));
    }
}
