//! Capture files for tests. Spec: draft-ietf-opsawg-pcap (magic number of nanoseconds, link type 1).

/// A pcap file of Ethernet frames with stamps in nanoseconds since 1970.
#[must_use]
pub fn file<'a>(frames: impl IntoIterator<Item = (u64, &'a [u8])>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let words = |bytes: &mut Vec<u8>, words: &[u32]| bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    // Magic, version 2.4 (two halves), zone, accuracy, snap length, link type.
    words(&mut bytes, &[0xa1b2_3c4d, 4 << 16 | 2, 0, 0, 262_144, 1]);
    for (time_ns, frame) in frames {
        let (seconds, nanoseconds) = (time_ns / 1_000_000_000, time_ns % 1_000_000_000);
        words(&mut bytes, &[seconds as u32, nanoseconds as u32, frame.len() as u32, frame.len() as u32]);
        bytes.extend_from_slice(frame);
    }
    bytes
}
