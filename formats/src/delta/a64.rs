//! Code-relative operands of AArch64 instructions (Arm ARM, C4.1 "A64 instruction set encoding").
//!
//! Knows one instruction at a time, and, for page-relative pairs, which page each register was last given. Wrong guesses
//! cost bytes in a delta and nothing else.

use super::refs::{Ref, RefKind};

/// Sweeps instructions and remembers what `adrp` put in each register.
#[derive(Debug, Default)]
pub struct Sweep {
    pages: [Option<u64>; 32],
}

fn sign_extend(value: u32, bits: u32) -> u64 {
    i64::from((value << (32 - bits)).cast_signed() >> (32 - bits)).cast_unsigned()
}

/// log2 of the access size of a load or store with an unsigned offset; `None` for other instructions.
fn unsigned_offset_scale(insn: u32) -> Option<u8> {
    if insn & 0x3b00_0000 != 0x3900_0000 {
        return None;
    }
    let vector128 = insn & 0x0480_0000 == 0x0480_0000;
    Some(if vector128 { 4 } else { (insn >> 30) as u8 })
}

impl Sweep {
    /// The pointer in the instruction `insn` at address `va` and file offset `at`; addresses outside `range` are none.
    pub fn step(&mut self, insn: u32, at: u64, va: u64, range: (u64, u64)) -> Option<Ref> {
        let found = |kind, target: u64| {
            (range.0 <= target && target < range.1).then_some(Ref { at, kind, shift: 0, base: 0, target })
        };
        if insn & 0x7c00_0000 == 0x1400_0000 {
            return found(RefKind::Branch26, va.wrapping_add(sign_extend(insn & 0x03ff_ffff, 26) << 2));
        }
        if insn & 0xff00_0010 == 0x5400_0000
            || insn & 0x7e00_0000 == 0x3400_0000
            || insn & 0xbf00_0000 == 0x1800_0000
        {
            return found(RefKind::Branch19, va.wrapping_add(sign_extend(insn >> 5 & 0x7_ffff, 19) << 2));
        }
        if insn & 0x7e00_0000 == 0x3600_0000 {
            return found(RefKind::Branch14, va.wrapping_add(sign_extend(insn >> 5 & 0x3fff, 14) << 2));
        }
        let register = (insn & 31) as usize;
        if insn & 0x1f00_0000 == 0x1000_0000 {
            let imm = sign_extend((insn >> 5 & 0x7_ffff) << 2 | insn >> 29 & 3, 21);
            if insn >> 31 == 0 {
                return found(RefKind::Adr, va.wrapping_add(imm));
            }
            let page = (va & !0xfff).wrapping_add(imm << 12);
            self.pages[register] = Some(page);
            return found(RefKind::Adrp, page);
        }
        let source = (insn >> 5 & 31) as usize;
        let low = u64::from(insn >> 10 & 0xfff);
        if insn & 0xffc0_0000 == 0x9100_0000 {
            return found(RefKind::Low12, self.pages[source]? + low);
        }
        let shift = unsigned_offset_scale(insn)?;
        let target = self.pages[source]? + (low << shift);
        found(RefKind::Low12, target).map(|reference| Ref { shift, ..reference })
    }
}

/// Puts `bits` wide `value` at `from` of the instruction in `bytes`.
fn set_bits(bytes: &mut [u8; 4], from: u32, bits: u32, value: u64) {
    let mask = ((1u32 << bits) - 1) << from;
    let insn = u32::from_le_bytes(*bytes) & !mask | (value as u32) << from & mask;
    *bytes = insn.to_le_bytes();
}

/// Rewrites the operand of `reference` in `bytes`: the instruction now lies at `va` and means `target`.
pub fn write(reference: &Ref, bytes: &mut [u8; 4], va: u64, target: u64) {
    let words = target.wrapping_sub(va) >> 2;
    match reference.kind {
        RefKind::Branch26 => set_bits(bytes, 0, 26, words),
        RefKind::Branch19 => set_bits(bytes, 5, 19, words),
        RefKind::Branch14 => set_bits(bytes, 5, 14, words),
        RefKind::Adr | RefKind::Adrp => {
            let imm = if reference.kind == RefKind::Adr {
                target.wrapping_sub(va)
            } else {
                (target >> 12).wrapping_sub(va >> 12)
            };
            set_bits(bytes, 29, 2, imm);
            set_bits(bytes, 5, 19, imm >> 2);
        }
        RefKind::Low12 => set_bits(bytes, 10, 12, (target & 0xfff) >> reference.shift),
        RefKind::Rel32 | RefKind::Abs64 | RefKind::Off32 | RefKind::Block32 | RefKind::Nid64 => {}
        RefKind::Off64 | RefKind::Symbol32 | RefKind::Value32 => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Instruction, its kind, and its target when it lies at 0x401234.
    const KNOWN: &[(u32, RefKind, u64)] = &[
        (0x9400_0002, RefKind::Branch26, 0x40_123c),
        (0x17ff_ffff, RefKind::Branch26, 0x40_1230),
        (0x5400_0040, RefKind::Branch19, 0x40_123c),
        (0xb4ff_ffe0, RefKind::Branch19, 0x40_1230),
        (0x3608_0040, RefKind::Branch14, 0x40_123c),
        (0x1000_0041, RefKind::Adr, 0x40_123c),
        (0x5800_0041, RefKind::Branch19, 0x40_123c),
        (0xb000_0000, RefKind::Adrp, 0x40_2000),
    ];

    #[test]
    fn operands_are_found_and_written_back() {
        for (insn, kind, target) in KNOWN {
            let reference = Sweep::default().step(*insn, 0, 0x40_1234, (0, 1 << 40)).unwrap();
            assert_eq!((reference.kind, reference.target), (*kind, *target), "{insn:08x}");
            let mut bytes = insn.to_le_bytes();
            write(&reference, &mut bytes, 0x40_1234, *target);
            assert_eq!(u32::from_le_bytes(bytes), *insn, "unchanged {insn:08x}");
            let moved = reference.target + 0x3000;
            write(&reference, &mut bytes, 0x40_1234, moved);
            let again = Sweep::default().step(u32::from_le_bytes(bytes), 0, 0x40_1234, (0, 1 << 40)).unwrap();
            assert_eq!((again.kind, again.target), (*kind, moved), "moved {insn:08x}");
        }
    }

    #[test]
    fn low_bits_follow_the_page_of_their_register() {
        let mut sweep = Sweep::default();
        assert!(sweep.step(0xb000_0001, 0, 0x40_1234, (0, 1 << 40)).is_some(), "adrp x1, 0x402000");
        let add = sweep.step(0x9101_2021, 4, 0x40_1238, (0, 1 << 40)).unwrap();
        assert_eq!((add.kind, add.target), (RefKind::Low12, 0x40_2048), "add x1, x1, 0x48");
        let load = sweep.step(0xf940_0422, 8, 0x40_123c, (0, 1 << 40)).unwrap();
        assert_eq!((load.kind, load.shift, load.target), (RefKind::Low12, 3, 0x40_2008), "ldr x2, [x1, 8]");
        assert_eq!(sweep.step(0xf940_0462, 8, 0x40_123c, (0, 1 << 40)), None, "x3 was never given a page");
    }
}
