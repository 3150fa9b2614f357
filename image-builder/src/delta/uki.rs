//! Unified kernel images: programs and modules in their initrd, which stands in them as it is, are described as files are, so that
//! their pointers are projected.
//!
//! Knows where they lie, not how they are encoded. Nothing else is taken apart: sections of their own save nothing.

use super::plan::{Job, Origin, Piece};
use super::source::Image;
use super::unpack::members;
use crate::image::pe::Pe;
use anyhow::Result;
use formats::delta::ReadAt;
use formats::delta::view::Extent;
use std::collections::HashMap;

/// Kernel images are held in memory; longer files are none.
const LONGEST: u64 = 256 << 20;
/// Shorter programs are not worth a map.
const SHORTEST: u64 = 4 << 10;

/// A program in an initrd: its name without digits, which change with every kernel, and its place in the file.
struct Program {
    name: String,
    at: Extent,
    content: Vec<u8>,
}

/// The programs in the initrd of `image`; none if it is no kernel image with an archive that is not compressed.
fn programs(image: &Image) -> Result<Vec<Program>> {
    if !(64..=LONGEST).contains(&image.size()) || image.bytes(0, 2)? != *b"MZ" {
        return Ok(Vec::new());
    }
    let bytes = image.bytes(0, image.size())?;
    let Ok(pe) = Pe::parse(bytes) else { return Ok(Vec::new()) };
    let Some(section) = pe.sections().into_iter().find(|section| section.name == ".initrd") else {
        return Ok(Vec::new());
    };
    let archive = pe.section_data(".initrd").unwrap_or_default();
    let program = |(name, place): (String, Extent)| {
        let content = archive[place.offset as usize..(place.offset + place.len) as usize].to_vec();
        let at = Extent { offset: section.data.start as u64 + place.offset, ..place };
        Program { name: name.replace(|letter: char| letter.is_ascii_digit(), ""), at, content }
    };
    let mut found: Vec<_> = members(archive).into_iter().map(program).collect();
    found.retain(|program| program.at.len >= SHORTEST && program.content.starts_with(b"\x7fELF"));
    Ok(found)
}

/// Pieces and jobs for `new`, if it is a kernel image whose initrd has programs that changed; the last job is what is around them.
///
/// # Errors
/// If an image cannot be read.
pub fn plan(old: &Image, new: &Image) -> Result<Option<(Vec<Piece>, Vec<Job>)>> {
    let before = programs(old)?;
    let mut known = HashMap::new();
    before.iter().for_each(|program| {
        known.entry(program.name.as_str()).or_insert(program);
    });
    let (mut pieces, mut jobs, mut around, mut end) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for program in programs(new)? {
        let like = known.get(program.name.as_str()).filter(|like| like.content != program.content);
        let Some(like) = like.filter(|_| program.at.offset >= end) else { continue };
        around.push(Extent { offset: end, len: program.at.offset - end });
        end = program.at.offset + program.at.len;
        pieces.push(Piece { at: program.at, origin: Origin::Job(jobs.len()) });
        let at = vec![program.at];
        jobs.push(Job { new: at.clone(), whole: at, old: vec![like.at], metadata: false });
    }
    if jobs.is_empty() {
        return Ok(None);
    }
    around.push(Extent { offset: end, len: new.size() - end });
    around.retain(|extent| extent.len > 0);
    pieces.extend(around.iter().map(|at| Piece { at: *at, origin: Origin::Job(jobs.len()) }));
    pieces.sort_by_key(|piece| piece.at.offset);
    let whole = Extent { offset: 0, len: old.size() };
    jobs.push(Job { new: around.clone(), whole: around, old: vec![whole], metadata: false });
    Ok(Some((pieces, jobs)))
}
