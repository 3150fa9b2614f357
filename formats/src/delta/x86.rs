//! Length and code-relative operand of one x86-64 instruction (Intel SDM volume 2, appendix A: opcode maps).
//!
//! Knows lengths only, not meanings: it finds the 32-bit displacements that move when code moves. An instruction that
//! it takes wrongly costs bytes in a delta and nothing else, because encoder and decoder read the same old bytes.

/// One instruction: its length, and a 32-bit displacement relative to its end, if it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Insn {
    /// Length in bytes, 1 to 15.
    pub len: u8,
    /// Offset in the instruction of a RIP-relative displacement or a 32-bit branch target.
    pub rel: Option<u8>,
}

/// Longest instruction, in bytes.
pub const MAX_LEN: usize = 15;

/// What follows an opcode.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Invalid,
    /// No operand bytes.
    None,
    /// Immediate of this many bytes.
    Imm(u8),
    /// Immediate of 2 or 4 bytes, by the operand size.
    ImmZ,
    /// `mov r, imm`: 2, 4 or 8 bytes.
    ImmV,
    /// Absolute address: 8 or 4 bytes.
    Moffs,
    /// Branch relative to the next instruction, 4 bytes.
    Rel32,
    /// ModRM and this many immediate bytes.
    Rm(u8),
    /// ModRM and an immediate of 2 or 4 bytes.
    RmZ,
    /// Groups 3: ModRM, and an immediate only for `test`; byte operand or not.
    RmTest(bool),
}

/// Prefixes that change lengths.
#[derive(Default, Clone, Copy)]
struct Prefix {
    operand16: bool,
    address32: bool,
    wide: bool,
}

fn one_byte(op: u8) -> Form {
    match op {
        0x00..=0x3f => match op & 7 {
            0..=3 => Form::Rm(0),
            4 => Form::Imm(1),
            5 => Form::ImmZ,
            6.. => Form::Invalid,
        },
        0x63 | 0x84..=0x8f | 0xd0..=0xd3 | 0xd8..=0xdf | 0xfe | 0xff => Form::Rm(0),
        0x68 | 0xa9 => Form::ImmZ,
        0x69 | 0x81 | 0xc7 => Form::RmZ,
        0x6a | 0x70..=0x7f | 0xa8 | 0xb0..=0xb7 | 0xcd | 0xe0..=0xe7 | 0xeb => Form::Imm(1),
        0x6b | 0x80 | 0x83 | 0xc0 | 0xc1 | 0xc6 => Form::Rm(1),
        0xa0..=0xa3 => Form::Moffs,
        0xb8..=0xbf => Form::ImmV,
        0xc2 | 0xca => Form::Imm(2),
        0xc8 => Form::Imm(3),
        0xe8 | 0xe9 => Form::Rel32,
        0xf6 => Form::RmTest(true),
        0xf7 => Form::RmTest(false),
        0x50..=0x5f | 0x6c..=0x6f | 0x90..=0x99 | 0x9b..=0x9f | 0xa4..=0xa7 | 0xaa..=0xaf => Form::None,
        0xc3 | 0xc9 | 0xcb | 0xcc | 0xcf | 0xd7 | 0xec..=0xef | 0xf1 | 0xf4 | 0xf5 | 0xf8..=0xfd => {
            Form::None
        }
        0x40..=0x4f | 0x60..=0x62 | 0x64..=0x67 | 0x82 | 0x9a | 0xc4 | 0xc5 | 0xce => Form::Invalid,
        0xd4..=0xd6 | 0xea | 0xf0 | 0xf2 | 0xf3 => Form::Invalid,
    }
}

fn two_byte(op: u8) -> Form {
    match op {
        0x05..=0x09 | 0x0b | 0x0e | 0x30..=0x35 | 0x37 | 0x77 | 0xa0..=0xa2 | 0xa8..=0xaa | 0xc8..=0xcf => {
            Form::None
        }
        0x0f | 0x70..=0x73 | 0xa4 | 0xac | 0xba | 0xc2 | 0xc4..=0xc6 => Form::Rm(1),
        0x80..=0x8f => Form::Rel32,
        0x04 | 0x0a | 0x0c | 0x24..=0x27 | 0x36 | 0x38..=0x3f => Form::Invalid,
        0x00..=0x03 | 0x0d | 0x10..=0x23 | 0x28..=0x2f | 0x40..=0x6f | 0x74..=0x76 | 0x78..=0x7f => {
            Form::Rm(0)
        }
        0x90..=0x9f | 0xa3 | 0xa5..=0xa7 | 0xab | 0xad..=0xaf | 0xb0..=0xb9 | 0xbb..=0xc1 | 0xc3 | 0xc7 => {
            Form::Rm(0)
        }
        0xd0..=0xff => Form::Rm(0),
    }
}

/// Opcode of a VEX or EVEX instruction in `map`.
fn vector(map: u8, op: u8) -> Form {
    match map {
        1 if op == 0x77 => Form::None,
        1 if matches!(op, 0x70..=0x73 | 0xc2 | 0xc4..=0xc6) => Form::Rm(1),
        1 | 2 | 5 | 6 => Form::Rm(0),
        3 => Form::Rm(1),
        0 | 4 | 7.. => Form::Invalid,
    }
}

/// Bytes up to and with the opcode, what follows it, and the prefixes.
fn opcode(code: &[u8]) -> Option<(usize, Form, Prefix)> {
    let mut prefix = Prefix::default();
    let mut at = 0;
    while let 0x26 | 0x2e | 0x36 | 0x3e | 0x64..=0x67 | 0xf0 | 0xf2 | 0xf3 = *code.get(at)? {
        prefix.operand16 |= code[at] == 0x66;
        prefix.address32 |= code[at] == 0x67;
        at += 1;
        if at == MAX_LEN {
            return None;
        }
    }
    if let 0x40..=0x4f = *code.get(at)? {
        prefix.wide = code[at] & 8 != 0;
        at += 1;
    }
    let byte = |ahead: usize| code.get(at + ahead).copied();
    let (length, form) = match byte(0)? {
        0x0f => match byte(1)? {
            0x38 => (3, byte(2).map(|_| Form::Rm(0))?),
            0x3a => (3, byte(2).map(|_| Form::Rm(1))?),
            op => (2, two_byte(op)),
        },
        0xc5 => (3, vector(1, byte(2)?)),
        0xc4 => (4, vector(byte(1)? & 31, byte(3)?)),
        0x62 => (5, vector(byte(1)? & 7, byte(4)?)),
        op => (1, one_byte(op)),
    };
    Some((at + length, form, prefix))
}

/// Length of ModRM, SIB and displacement at `at`, and whether the displacement is RIP-relative.
fn modrm(code: &[u8], at: usize) -> Option<(usize, bool)> {
    let byte = *code.get(at)?;
    let (mode, rm) = (byte >> 6, byte & 7);
    if mode == 3 {
        return Some((1, false));
    }
    let sib = usize::from(rm == 4);
    let base5 = sib == 1 && *code.get(at + 1)? & 7 == 5;
    Some(match mode {
        0 if rm == 5 => (5, true),
        0 if base5 => (6, false),
        0 => (1 + sib, false),
        1 => (2 + sib, false),
        _ => (5 + sib, false),
    })
}

/// Decodes the instruction at the start of `code`; `None` if it is not one, or cut off.
#[must_use]
pub fn decode(code: &[u8]) -> Option<Insn> {
    let (mut at, form, prefix) = opcode(code)?;
    let z = if prefix.operand16 { 2 } else { 4 };
    let mut rel = None;
    let mut with_rm = |at: &mut usize| -> Option<()> {
        let (length, relative) = modrm(code, *at)?;
        rel = relative.then_some(*at + 1);
        *at += length;
        Some(())
    };
    match form {
        Form::Invalid => return None,
        Form::None => {}
        Form::Imm(bytes) => at += usize::from(bytes),
        Form::ImmZ => at += z,
        Form::ImmV => at += if prefix.wide { 8 } else { z },
        Form::Moffs => at += if prefix.address32 { 4 } else { 8 },
        Form::Rel32 => {
            rel = Some(at);
            at += 4;
        }
        Form::Rm(bytes) => {
            with_rm(&mut at)?;
            at += usize::from(bytes);
        }
        Form::RmZ => {
            with_rm(&mut at)?;
            at += z;
        }
        Form::RmTest(byte_operand) => {
            let test = code.get(at)? >> 3 & 7 < 2;
            with_rm(&mut at)?;
            at += if !test {
                0
            } else if byte_operand {
                1
            } else {
                z
            };
        }
    }
    if at > MAX_LEN || at > code.len() {
        return None;
    }
    Some(Insn { len: at as u8, rel: rel.map(|offset| offset as u8) })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Encodings from the Intel manual and the output of an assembler: bytes, length, offset of the relative operand.
    const KNOWN: &[(&[u8], u8, Option<u8>)] = &[
        (&[0x90], 1, None),
        (&[0xe8, 1, 0, 0, 0], 5, Some(1)),
        (&[0x0f, 0x84, 1, 0, 0, 0], 6, Some(2)),
        (&[0x48, 0x8d, 0x05, 1, 2, 3, 4], 7, Some(3)),
        (&[0x48, 0x8b, 0x44, 0x24, 0x08], 5, None),
        (&[0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8], 10, None),
        (&[0x66, 0xc7, 0x05, 1, 2, 3, 4, 5, 6], 9, Some(3)),
        (&[0x83, 0x3d, 1, 2, 3, 4, 0], 7, Some(2)),
        (&[0xf7, 0x05, 1, 2, 3, 4, 1, 0, 0, 0], 10, Some(2)),
        (&[0xf7, 0xd8], 2, None),
        (&[0xc5, 0xf9, 0x6f, 0x05, 1, 2, 3, 4], 8, Some(4)),
        (&[0xc4, 0xe3, 0x79, 0x0f, 0x05, 1, 2, 3, 4, 8], 10, Some(5)),
        (&[0x62, 0xf1, 0x7c, 0x48, 0x10, 0x05, 1, 2, 3, 4], 10, Some(6)),
        (&[0xf3, 0x0f, 0x1e, 0xfa], 4, None),
        (&[0x66, 0x0f, 0x38, 0x00, 0x05, 1, 2, 3, 4], 9, Some(5)),
        (&[0x48, 0x8b, 0x04, 0x25, 1, 2, 3, 4], 8, None),
        (&[0xc8, 0x10, 0x00, 0x01], 4, None),
    ];

    #[test]
    fn known_encodings() {
        for (code, len, rel) in KNOWN {
            let mut padded = code.to_vec();
            padded.resize(32, 0x90);
            assert_eq!(decode(&padded), Some(Insn { len: *len, rel: *rel }), "{code:02x?}");
            assert_eq!(decode(&code[..code.len() - 1]), None, "cut off: {code:02x?}");
        }
    }

    #[test]
    fn every_start_ends_within_the_limit() {
        for first in 0..=u16::MAX {
            let mut code = [0x05; 24];
            code[..2].copy_from_slice(&first.to_le_bytes());
            if let Some(insn) = decode(&code) {
                assert!((1..=MAX_LEN as u8).contains(&insn.len));
                assert!(insn.rel.is_none_or(|rel| rel + 4 <= insn.len));
            }
        }
    }
}
