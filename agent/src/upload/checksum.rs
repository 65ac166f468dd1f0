//! CRC64NVME: of bytes, of sections of a file, of an object from its parts, and as S3 writes it.
//! Out: the sum as a number, or base64 of its eight bytes, big endian. Never: holds more than a buffer of the file in memory.
//! Spec: Amazon S3 User Guide "Checking object integrity"; RFC 4648 section 4 (base64).

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;

use crc_fast::{CrcAlgorithm::Crc64Nvme, Digest, checksum, checksum_combine};

use super::plan::Section;

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The sum of `bytes`.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> u64 {
    checksum(Crc64Nvme, bytes)
}

/// The sum of a section of the file at `path`.
///
/// # Errors
/// When it cannot be read, or ends before the section does.
pub fn of_section(path: &Path, section: Section) -> io::Result<u64> {
    const BUFFER_BYTES: u64 = 1 << 20;
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(section.offset))?;
    let mut digest = Digest::new(Crc64Nvme);
    let mut buffer = vec![0; section.bytes.min(BUFFER_BYTES) as usize];
    let mut left = section.bytes;
    while left > 0 {
        let some = buffer.get_mut(..left.min(BUFFER_BYTES) as usize).unwrap_or_default();
        file.read_exact(some)?;
        digest.update(some);
        left -= some.len() as u64;
    }
    Ok(digest.finalize())
}

/// The sum of what consists of parts, given as sum and length in their order.
pub fn combine(parts: impl IntoIterator<Item = (u64, u64)>) -> u64 {
    parts.into_iter().fold(of_bytes(&[]), |all, (sum, bytes)| checksum_combine(Crc64Nvme, all, sum, bytes))
}

/// As S3 writes it.
#[must_use]
pub fn to_base64(sum: u64) -> String {
    // Eight bytes are ten groups of six bits and four bits more, which two zero bits and a '=' fill up.
    let padded = u128::from(sum) << 2;
    let digit = |group: u32| ALPHABET.get((padded >> (60 - 6 * group)) as usize & 63).map_or('=', |&digit| char::from(digit));
    (0..11).map(digit).chain(['=']).collect()
}

/// What S3 wrote; `None` when it is not eight bytes of base64.
#[must_use]
pub fn from_base64(text: &str) -> Option<u64> {
    let digits = text.strip_suffix('=').filter(|digits| digits.len() == 11)?;
    let value = |digit: u8| ALPHABET.iter().position(|&known| known == digit);
    let padded = digits.bytes().try_fold(0u128, |all, digit| Some(all << 6 | value(digit)? as u128))?;
    if padded & 3 != 0 {
        return None;
    }
    u64::try_from(padded >> 2).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_check_value_of_the_catalogue_comes_out() {
        // CRC-64/NVME of "123456789", NVM Express NVM Command Set Specification 5.2.1.3.4.
        assert_eq!(of_bytes(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(to_base64(0xae8b_1486_0a79_9888), "rosUhgp5mIg=");
    }

    #[test]
    fn what_is_not_base64_of_eight_bytes_is_refused() {
        for text in ["", "=", "AAAAAAAAAAB=", "AAAAAAAAAAA", "AAAAAAAAAAAA", "rosUhgp5mI*=", "rosUhgp5mIg==", "rosUhgp5mIé"] {
            assert_eq!(from_base64(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn base64_goes_there_and_back(sum: u64) {
            prop_assert_eq!(from_base64(&to_base64(sum)), Some(sum));
        }

        #[test]
        fn the_sum_of_the_parts_is_the_sum_of_the_whole(bytes in prop::collection::vec(any::<u8>(), 0..4000), cut in 0usize..4000) {
            let (one, two) = bytes.split_at(cut.min(bytes.len()));
            let parts = [one, two].map(|part| (of_bytes(part), part.len() as u64));
            prop_assert_eq!(combine(parts), of_bytes(&bytes));
            let file = tempfile::NamedTempFile::new().unwrap();
            std::fs::write(file.path(), &bytes).unwrap();
            let section = Section { offset: one.len() as u64, bytes: two.len() as u64 };
            prop_assert_eq!(of_section(file.path(), section).unwrap(), of_bytes(two));
            let beyond = Section { offset: 1, bytes: bytes.len() as u64 };
            prop_assert_eq!(of_section(file.path(), beyond).is_err(), !bytes.is_empty());
        }
    }
}
