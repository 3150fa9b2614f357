//! Tests of delta files: what comes back, and what is refused.

use super::*;

fn header() -> Header {
    Header {
        group_bits: 20,
        texts: false,
        history: false,
        old_len: 1,
        new_len: (1 << 20) + 1,
        old_digest: [1; 32],
        new_digest: [2; 32],
        total: HEADER + 200 + 60,
        index_packed: 200,
        index_len: 300,
        index_digest: [3; 32],
    }
}

#[test]
fn header_and_index_come_back() {
    let header = Header { history: true, ..header() };
    assert_eq!(header.encode().len() as u64, HEADER);
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    let group = |offset, packed, byte| Group { offset, packed, digest: [byte; 16] };
    let at = HEADER + 200;
    let bundle = Bundle { offset: at, packed: 10, first: 0, objects: 3, digest: [4; 32] };
    let groups = vec![group(at + 10, 20, 5), group(at + 30, 30, 6)];
    let index = Index { texts: Vec::new(), bundles: vec![bundle], groups };
    assert_eq!((index.bundle_of(2), index.bundle_of(3)), (Some(&bundle), None));
    assert_eq!(Index::decode(&index.encode(), &header).unwrap(), index);
    let longer = Header { total: header.total + 1, ..header };
    assert!(
        Index::decode(&index.encode(), &longer).unwrap_err().to_string().contains("its parts end at byte")
    );
}

#[test]
fn texts_come_behind_the_image() {
    let header = Header { texts: true, total: HEADER + 200 + 30, ..header() };
    assert_eq!(Header::decode(&header.encode()).unwrap(), header);
    let group = |offset, packed| Group { offset, packed, digest: [7; 16] };
    let at = HEADER + 200;
    let text = |len, level| Text { len, style: Style { zlib: true, level } };
    let groups = vec![group(at, 5), group(at + 5, 5), group(at + 10, 10), group(at + 20, 10)];
    let index = Index { texts: vec![text(7, 4), text(1 << 20, 9)], bundles: Vec::new(), groups };
    let bytes = index.encode();
    assert_eq!(Index::decode(&bytes, &header).unwrap(), index);
    assert_eq!(index.space(&header), (2 << 20) + (1 << 20) + 7);
    let refuse = |at: usize, value: u8, words: &str| {
        let mut bad = bytes.clone();
        bad[at] = value;
        let error = Index::decode(&bad, &header).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refuse(0, 65, "number of texts is 65");
    refuse(2, 3, "style 3");
    let long = Index { texts: vec![text(MAX_TEXT, 6), text(1, 6)], ..index.clone() };
    let error = Index::decode(&long.encode(), &header).unwrap_err().to_string();
    assert!(error.contains("length of a text is 1, but must be at most 0"), "{error}");
}

#[test]
fn foreign_versions_and_large_images_are_refused() {
    let good = header().encode();
    let refuse = |at: usize, value: u8, words: &str| {
        let mut bad = good.clone();
        bad[at] = value;
        let error = Header::decode(&bad).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    refuse(0, b'X', "this is no delta");
    refuse(8, 2, "version 2");
    refuse(11, 9, "codec 9");
    refuse(12, 4, "flags 4");
    refuse(10, 23, "group 2^23");
    refuse(31, 1, "limits are");
    assert!(Header::decode(&good[..143]).is_err());
}
