//! Which bytes of a segment are which part: a fixed function of the part's number, so that a restart knows every offset.
//! In: part numbers and file lengths. Out: sections of the file. Never: a part that S3 refuses for its size or its number.
//! Spec: Amazon S3 User Guide "Amazon S3 multipart upload limits" (10,000 parts, 5 MiB to 5 GiB each but the last).

const MIB: u64 = 1 << 20;

/// The most parts of an object.
pub const PARTS_MAX: u32 = 10_000;

/// Last part number of each step, and the bytes of the parts up to it: small at first, so that little is left to send when a
/// window closes; large at last, so that the longest segment (`record.max_bytes`, 1 TiB at most) leaves a tenth of the numbers unused.
const STEPS: [(u32, u64); 3] = [(2_000, 8 * MIB), (6_000, 32 * MIB), (PARTS_MAX, 320 * MIB)];

/// The most bytes that fit into [`PARTS_MAX`] parts.
pub const BYTES_MAX: u64 = offset(PARTS_MAX + 1);

/// Where a part lies in the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Section {
    /// Its first byte.
    pub offset: u64,
    /// Its length; 0 only for the one part of an empty file.
    pub bytes: u64,
}

/// Where part `number` (1 to [`PARTS_MAX`]) begins.
const fn offset(number: u32) -> u64 {
    let (mut step, mut before, mut offset) = (0, 0, 0);
    while step < STEPS.len() {
        #[expect(clippy::indexing_slicing, reason = "bounded by the line above; iterators are not const")]
        let (last, bytes) = STEPS[step];
        let whole = if number <= last { number.saturating_sub(1) } else { last };
        if whole > before {
            offset += (whole - before) as u64 * bytes;
        }
        before = last;
        step += 1;
    }
    offset
}

/// How many parts of a file that may still grow are whole in its first `file_bytes`.
#[must_use]
pub fn whole_parts(file_bytes: u64) -> u32 {
    let (mut parts, mut before, mut left) = (0, 0, file_bytes);
    for (last, bytes) in STEPS {
        let here = (left / bytes).min(u64::from(last - before));
        parts += here as u32;
        if here < u64::from(last - before) {
            break;
        }
        left -= here * bytes;
        before = last;
    }
    parts
}

/// How many parts a file that is whole has, its tail included; `None` when it has more than [`BYTES_MAX`] bytes.
/// An empty file has one, empty part: S3 completes no upload without parts.
#[must_use]
pub fn parts(file_bytes: u64) -> Option<u32> {
    let whole = whole_parts(file_bytes);
    let tail = file_bytes > offset(whole + 1);
    match whole + u32::from(tail) {
        0 => Some(1),
        parts if parts <= PARTS_MAX => Some(parts),
        _ => None,
    }
}

/// The section of part `number` in a file of `file_bytes`; `None` when the part begins behind its end or cannot exist.
#[must_use]
pub fn section(number: u32, file_bytes: u64) -> Option<Section> {
    if number == 0 || number > PARTS_MAX {
        return None;
    }
    let begin = offset(number);
    let bytes = file_bytes.min(offset(number + 1)).saturating_sub(begin);
    (bytes > 0 || (number == 1 && file_bytes == 0)).then_some(Section { offset: begin, bytes })
}

/// The smallest size of the plan's parts that holds `bytes`: what timeouts are measured by. There are few, because the SDK keeps
/// a pool of connections for each timeout it ever saw.
#[must_use]
pub fn size_class(bytes: u64) -> u64 {
    STEPS.iter().map(|&(_, size)| size).find(|&size| bytes <= size).unwrap_or(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_upload_ends_at_ten_thousand_parts() {
        assert_eq!(parts(BYTES_MAX), Some(PARTS_MAX));
        assert_eq!(parts(BYTES_MAX + 1), None);
    }

    #[test]
    fn the_longest_segment_that_settings_allow_uses_at_most_nine_tenths_of_the_parts() {
        // record.max_bytes is at most 1 TiB and counts what the recorder hands over; incompressible frames grow in zstd by their
        // headers, less than a percent.
        let longest = 1u64 << 40;
        assert!(parts(longest + longest / 100).unwrap() <= PARTS_MAX / 10 * 9);
    }

    #[test]
    fn part_sizes_grow_at_the_documented_numbers() {
        let bytes = |number| section(number, u64::MAX).unwrap().bytes;
        assert_eq!((bytes(1), bytes(2_000)), (8 * MIB, 8 * MIB));
        assert_eq!((bytes(2_001), bytes(6_000)), (32 * MIB, 32 * MIB));
        assert_eq!((bytes(6_001), bytes(10_000)), (320 * MIB, 320 * MIB));
        assert_eq!(section(2_001, u64::MAX).unwrap().offset, 2_000 * 8 * MIB);
        assert!(section(0, u64::MAX).is_none() && section(10_001, u64::MAX).is_none());
    }

    #[test]
    fn an_empty_file_is_one_empty_part_and_a_short_one_waits_for_its_end() {
        assert_eq!((parts(0), whole_parts(0)), (Some(1), 0));
        assert_eq!(section(1, 0), Some(Section { offset: 0, bytes: 0 }));
        assert_eq!((parts(24), whole_parts(24)), (Some(1), 0));
        assert_eq!((parts(8 * MIB), whole_parts(8 * MIB)), (Some(1), 1));
        assert_eq!((parts(8 * MIB + 1), whole_parts(8 * MIB + 1)), (Some(2), 1));
        assert_eq!(section(2, 8 * MIB), None);
    }

    proptest! {
        #[test]
        fn the_parts_of_a_file_cover_it_once_and_only_the_last_is_small(file_bytes in 1..=BYTES_MAX) {
            let (count, whole) = (parts(file_bytes).unwrap(), whole_parts(file_bytes));
            prop_assert!(count - whole <= 1);
            let mut at = 0;
            for number in 1..=count {
                let part = section(number, file_bytes).unwrap();
                prop_assert_eq!(part.offset, at);
                prop_assert!(part.bytes >= 5 * MIB || number == count);
                prop_assert!(part.bytes <= 5 << 30);
                at += part.bytes;
            }
            prop_assert_eq!(at, file_bytes);
            prop_assert!(section(count + 1, file_bytes).is_none());
        }
    }
}
