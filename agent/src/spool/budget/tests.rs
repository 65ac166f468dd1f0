//! The budget on a real folder. That it holds under load is shown by `tests/tests/disk.rs`.
#![allow(clippy::unwrap_used)]

use super::*;

const MAX: u64 = 16 << 20;
const RESERVE: u64 = MAX / RESERVE_PART;

fn budget(dir: &Path) -> Budget {
    let budget = Budget::new(dir, MAX);
    budget.look().unwrap();
    budget
}

fn write(dir: &Path, name: &str, bytes: u64) {
    fs::write(dir.join(name), vec![7; usize::try_from(bytes).unwrap()]).unwrap();
}

#[test]
fn data_fill_the_budget_to_the_byte_but_for_what_journals_and_manifests_need() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), "a.pcap", 5 << 20);
    write(dir.path(), "a.journal", 1000);
    write(dir.path(), "b.manifest", 4097);
    let budget = budget(dir.path());
    let small = 3 * BLOCK_BYTES + BLOCK_BYTES;
    let free = MAX - (5 << 20) - small - RESERVE;
    assert!(budget.admits(free) && !budget.admits(free + 1));
    budget.hand_over(1 << 20);
    assert!(budget.admits(free - (1 << 20)) && !budget.admits(free - (1 << 20) + 1), "what is on its way counts");
    let level = budget.look().unwrap();
    assert_eq!((level.holds, level.capacity), ((5 << 20) + small, MAX - RESERVE - (1 << 20)));
    write(dir.path(), "b.pcap", 1 << 20);
    budget.settle(1 << 20);
    budget.look().unwrap();
    let free = free - (1 << 20) - BLOCK_BYTES;
    assert!(budget.admits(free) && !budget.admits(free + 1), "and counts once when it has arrived");
    fs::remove_file(dir.path().join("a.pcap")).unwrap();
    budget.look().unwrap();
    assert!(budget.admits(free + (5 << 20) + BLOCK_BYTES), "what is gone leaves room");
}

#[test]
fn a_disk_that_refuses_has_no_room_until_it_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let budget = budget(dir.path());
    assert!(budget.admits(1) && budget.is_relaxed());
    budget.refuse();
    assert!(!budget.admits(1) && !budget.is_relaxed());
    budget.look().unwrap();
    assert!(budget.admits(1));
}

#[test]
fn the_ballast_is_half_the_reserve_and_makes_way_for_journals() {
    let dir = tempfile::tempdir().unwrap();
    let budget = budget(dir.path());
    assert_eq!(holdings(dir.path()).unwrap().ballast, RESERVE / 2);
    let mut refusals = 2;
    let written = with_ballast(dir.path(), || {
        refusals -= 1;
        if refusals >= 0 { Err(ErrorKind::StorageFull.into()) } else { Ok(()) }
    });
    assert!(written.is_ok());
    assert_eq!(holdings(dir.path()).unwrap().ballast, RESERVE / 2 - 2 * LIGHTEN_BYTES);
    budget.look().unwrap();
    assert_eq!(holdings(dir.path()).unwrap().ballast, RESERVE / 2, "it comes back when there is room");
    write(dir.path(), "a.pcap", MAX - RESERVE - 2 * BLOCK_BYTES);
    write(dir.path(), "a.journal", RESERVE / 2);
    budget.look().unwrap();
    assert_eq!(holdings(dir.path()).unwrap().ballast, RESERVE / 4 + BLOCK_BYTES, "journals have taken a half of the reserve");
}

#[test]
fn a_write_that_fails_for_another_reason_or_without_end_is_not_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let _budget = budget(dir.path());
    let mut tries = 0;
    let written: Result<(), IoError> = with_ballast(dir.path(), || {
        tries += 1;
        Err(ErrorKind::PermissionDenied.into())
    });
    assert!(written.is_err() && tries == 1);
    let written: Result<(), IoError> = with_ballast(dir.path(), || {
        tries += 1;
        Err(ErrorKind::StorageFull.into())
    });
    assert!(written.is_err());
    assert_eq!(tries, 2 + RESERVE / 2 / LIGHTEN_BYTES, "until the ballast is used up");
}
