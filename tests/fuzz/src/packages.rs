//! What hosts are given to install.

use std::fs;

use fleetwright_protocol::artifact::{ARTIFACT_BYTES_MAX, ARTIFACT_CHUNKS_MAX, ChunkList, Listed};

/// An archive. Whatever it is, nothing comes to be beside the folder that it is unpacked into.
pub fn archive(data: &[u8]) {
    let Ok(folder) = tempfile::tempdir() else { return };
    let (packed, to) = (folder.path().join("archive"), folder.path().join("to"));
    fs::write(&packed, data).expect("write");
    fs::create_dir(&to).expect("a folder");
    if let Err(failure) = fleetwright_agent::unpack(&packed, &to, u32::from(data.len() % 3 == 1)) {
        assert!(!failure.message.is_empty());
    }
    assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 2);
}

/// The parts of a list of chunks, one after the other.
pub fn chunk_list(data: &[u8]) {
    let (mut list, mut rest) = (ChunkList::default(), data);
    while let Ok((part, after)) = postcard::take_from_bytes::<Listed>(rest) {
        let taken = list.take(part);
        assert!(list.next() as usize <= ARTIFACT_CHUNKS_MAX);
        if !matches!(taken, Ok(false)) {
            break;
        }
        assert!(list.bytes() <= ARTIFACT_BYTES_MAX);
        rest = after;
    }
}
