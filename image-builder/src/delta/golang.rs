//! Finds the bases that Go's tables count from, in the module data of a Go program (`runtime/symtab.go`, `moduledata`).
//!
//! Knows the order of its first fields, stable since Go 1.20; whatever does not look right is left unknown, which costs
//! bytes only. Only the encoder looks; the decoder is told.

use formats::delta::elf::{Elf, Header, Params};
use formats::delta::wire::le64;

/// Words of `moduledata`: the pclntab's header, names, types, end of types, function data.
const NAMES: usize = 1;
const TYPES: usize = 36;
const ETYPES: usize = 37;
const GOFUNC: usize = 39;

fn inside(header: &Header, va: u64) -> bool {
    header.va <= va && va <= header.va + header.size
}

/// The bases of the Go program `bytes`; zeros if it is none.
#[must_use]
pub fn params(elf: &Elf, bytes: &[u8]) -> Params {
    let blank = Params::default();
    let find = |suffix: &str| elf.headers().iter().find(|header| header.name.ends_with(suffix));
    let (Some(table), Some(rodata)) = (find(".gopclntab"), find(".rodata")) else { return blank };
    for header in elf.headers().iter().filter(|header| header.kind == 1 && header.flags & 4 == 0) {
        let end = (header.offset + header.size).min(bytes.len() as u64) as usize;
        for at in (header.offset as usize..end).step_by(8) {
            let word = |number: usize| le64(bytes, at + number * 8).unwrap_or(0);
            if word(0) != table.va || !inside(table, word(NAMES)) {
                continue;
            }
            let known = |va: u64| if inside(rodata, va) { va } else { 0 };
            let (types, etypes) = (known(word(TYPES)), known(word(ETYPES)));
            let whole = types != 0 && types < etypes;
            return Params {
                gofunc: known(word(GOFUNC)),
                types: if whole { types } else { 0 },
                etypes: if whole { etypes } else { 0 },
            };
        }
    }
    blank
}
