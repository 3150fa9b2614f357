//! Any bytes as an old program, module or image: pointers are found in order and inside, whatever the file says.
#![no_main]

use formats::delta::elf::Params;
use formats::delta::object::{Kind, Model};
use formats::delta::view::{Extent, View};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let size = data.len() as u64;
    let extents = [Extent { offset: 0, len: size }];
    let Ok(view) = View::new(&data, &extents) else { return };
    for kind in [Kind::Elf(Params::default()), Kind::Module(None), Kind::Erofs] {
        let Ok(mut model) = Model::open(&kind, &data, &view) else { continue };
        let mut all = Vec::new();
        if model.refs(&data, &view, (0, size), &mut all).is_ok() {
            assert!(all.iter().all(|found| found.at < size));
            assert!(all.windows(2).all(|pair| pair[0].at <= pair[1].at));
        }
        let middle = size / 2;
        let mut half = Vec::new();
        if model.refs(&data, &view, (middle, size), &mut half).is_ok() {
            assert!(half.iter().all(|found| found.at >= middle));
        }
    }
});
