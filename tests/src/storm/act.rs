//! The acts of a storm, each on an S3 and a wire of its own: what `make test` does once and `make soak` for as long as told.
//! In: how many kills, a lot. Out: the table, printed. Never: returns when a promise is broken.

use std::time::Duration;

use super::gate::{Call, When};
use super::ledger::Sum;
use super::point::POINTS;
use super::traffic::{FULL, PACES, Pace, SLOW, SMALL};
use super::{Lot, Storm};
use crate::garage::Garage;

/// `spool.flush_ms` as nobody has set it.
const FLUSH_DEFAULT: Duration = Duration::from_millis(500);

/// Windows in which more than one part of 8 MiB comes at full rate.
const WINDOW_OF_PARTS_SECONDS: u64 = 5;

/// How often all points are gone through at most, for each hit that is wanted: some points are microseconds long.
const ROUNDS_PER_HIT: usize = 100;

/// Agents that live at most so long die while they begin, or take up what the one before has left.
const SHORT_LIFE: Duration = Duration::from_millis(400);

/// Agents that live at most so long die at any moment of a segment that they opened themselves, closed and stored.
const LONG_LIFE: Duration = Duration::from_millis(2500);

/// An agent dies at each point so many times, and at least once at each pace at which it comes there: ten packets a second and full rate,
/// or full rate with frames so large that uploads have several parts.
///
/// # Panics
/// When a promise is broken, or a point was not hit so often.
pub fn at_each_point(hits: usize) -> Sum {
    let mut storm: Storm = Storm::new(Duration::from_millis(50), SLOW);
    for pace in PACES.into_iter().cycle().take(hits * ROUNDS_PER_HIT * PACES.len()) {
        if !storm.kill_at_points(hits, pace) {
            break;
        }
    }
    let sum = storm.settle();
    for point in POINTS {
        let due: Vec<_> = storm.due(point, hits).into_iter().map(|pace| pace.name).collect();
        assert!(due.is_empty(), "too few agents that were to die at '{}' did, at the paces {due:?}; the table is above", point.name);
    }
    assert!(sum.of_parts > 0, "no capture had several parts");
    sum
}

/// So many agents die some time within a short and so many within a long life, by thirds at ten packets a second, at full rate and at
/// full rate with large frames. Long lives end in each stage of a segment's life: each of them has its own part of the time.
///
/// # Panics
/// When a promise is broken.
pub fn at_any_moment(lot: &mut Lot, short: usize, long: usize) -> Sum {
    let mut storm: Storm = Storm::new(Duration::from_millis(100), SLOW);
    for (third, pace) in PACES.into_iter().enumerate() {
        storm.set_pace(pace);
        let share = |kills: usize| kills * (third + 1) / PACES.len() - kills * third / PACES.len();
        for _ in 0..share(short) {
            storm.kill_at_random(lot, SHORT_LIFE, "any moment of a short life");
        }
        let stages = share(long) as u32;
        for stage in 0..stages {
            let begun = LONG_LIFE * stage / stages;
            storm.kill_after(begun + lot.up_to(LONG_LIFE / stages), "any moment of a long life");
        }
    }
    let sum = storm.settle();
    assert!(sum.stored > sum.sent / 3, "a storm of which most was lost says nothing");
    assert!(sum.of_parts > 0, "no capture had several parts");
    assert!(sum.closed > long / 10, "of {long} agents that were to live long hardly one closed a segment that it had opened");
    sum
}

/// So many agents die while S3 comes and goes.
///
/// # Panics
/// When a promise is broken.
pub fn while_s3_comes_and_goes(lot: &mut Lot, kills: usize, life: Duration) -> Sum {
    let mut storm: Storm = Storm::new(Duration::from_millis(100), FULL);
    for kill in 0..kills {
        let away = lot.below(3) > 0 && kill + 1 < kills;
        storm.set_away(away);
        storm.kill_at_random(lot, life, if away { "S3 away" } else { "S3 back" });
    }
    storm.set_away(false);
    storm.settle()
}

/// What a kill costs as the agent is set by default: so many agents die when they have come to their own rhythm.
///
/// # Panics
/// When a promise is broken, or nothing is lost at all.
pub fn at_default_settings(lot: &mut Lot, kills: usize) -> Sum {
    let mut storm: Storm = Storm::new(FLUSH_DEFAULT, Pace { name: "steady", burst: 10, every: Duration::from_millis(5), filling: SMALL });
    for _ in 0..kills {
        storm.kill_after(FLUSH_DEFAULT + Duration::from_millis(300 + lot.below(500)), "default settings");
    }
    let sum = storm.settle();
    assert!(sum.lost > 0, "no kill cost anything: what was lost is not seen");
    sum
}

/// Where S3 dies while one agent lives: before, in the middle of and after each call that it has to remember.
const DEATHS: &[(Call, When)] = &[
    (Call::Part, When::Within),
    (Call::Complete, When::Before),
    (Call::Complete, When::After),
    (Call::Create, When::Before),
    (Call::Create, When::After),
    (Call::Part, When::Before),
    (Call::Part, When::After),
];

/// And the next one, which takes up the upload of which S3 has a part that nobody was told of.
const DEATHS_AFTERWARDS: &[(Call, When)] =
    &[(Call::ListParts, When::Before), (Call::HeadDone, When::Before), (Call::PutManifest, When::Within), (Call::PutManifest, When::After)];

/// S3 itself dies at each call, so many times, and comes back with what it had: uploads go on where they were.
///
/// # Panics
/// When a promise is broken, or an upload was begun again.
pub fn while_s3_is_killed(lot: &mut Lot, times: usize) -> Sum {
    let mut storm = Storm::<Garage>::new(Duration::from_millis(100), FULL);
    storm.set("record.rotate_seconds", WINDOW_OF_PARTS_SECONDS);
    for _ in 0..times {
        for calls in [DEATHS, DEATHS_AFTERWARDS] {
            storm.kill_s3_at(calls, Duration::from_millis(lot.below(1500)), "after deaths of S3");
        }
    }
    let sum = storm.settle();
    // Whose creation was not answered is begun again; so may be what each of the agent's own ends cut off.
    let unheard = DEATHS.iter().filter(|&&(call, _)| call == Call::Create).count() * times + 2 * times;
    let (begun, captures) = (storm.created(), sum.captures);
    assert!(begun <= captures + unheard, "{begun} uploads were begun for {captures} captures, {unheard} of them perhaps unheard");
    sum
}
