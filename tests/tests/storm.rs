//! An agent that is killed again and again under live load: at each transition of its journal, and at any moment.
//! In: packets on a wire, LocalStack behind a gate, the daemon. Out: promise 4, counted from packets sent; the table of kills.
//! `TAPFLEET_STORM_SEED` has a storm again; `make soak` runs it for as long as told.
//! Needs: root, S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::print_stdout)]

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tapfleet_tests::storm::point::POINTS;
use tapfleet_tests::storm::traffic::{FULL, Pace, SLOW};
use tapfleet_tests::storm::{Lot, Storm};

/// One after the other: each wants the processors for itself.
static ALONE: Mutex<()> = Mutex::new(());

/// `spool.flush_ms` as nobody has set it.
const FLUSH_DEFAULT: Duration = Duration::from_millis(500);

/// How often an agent must have died at each point.
const HITS: usize = 5;

/// How often all points are gone through for that. Some are microseconds long, and not every kill meets them.
const ROUNDS_MAX: usize = 40;

#[test]
fn an_agent_killed_five_times_at_each_transition_of_its_journal_loses_at_most_its_flush_time_and_stores_the_rest_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut storm = Storm::new(Duration::from_millis(50), SLOW);
    for round in 0..ROUNDS_MAX {
        storm.set_pace(if round % 2 == 0 { SLOW } else { FULL });
        if !storm.kill_at_points(HITS) {
            break;
        }
    }
    let sum = storm.settle();
    storm.print(&sum);
    for point in POINTS {
        assert!(storm.hits(point) >= HITS, "no agent died at '{}' {HITS} times: {}", point.name, storm.hits(point));
    }
}

#[test]
fn an_agent_killed_a_hundred_times_at_any_moment_loses_at_most_its_flush_time_and_stores_the_rest_once() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lot = Lot::drawn();
    let mut storm = Storm::new(Duration::from_millis(100), SLOW);
    for (pace, name) in [(SLOW, "any moment, 10 packets/s"), (FULL, "any moment, full rate")] {
        storm.set_pace(pace);
        for _ in 0..50 {
            storm.kill_at_random(&mut lot, Duration::from_millis(600), name);
        }
    }
    let sum = storm.settle();
    storm.print(&sum);
    assert!(sum.stored > sum.sent / 2, "a storm of which most was lost says nothing");
}

#[test]
fn a_kill_at_default_settings_costs_less_than_a_second_of_traffic() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut lot = Lot::drawn();
    let mut storm = Storm::new(FLUSH_DEFAULT, Pace { burst: 10, every: Duration::from_millis(5) });
    for _ in 0..10 {
        // By then it has come to its own rhythm.
        let life = FLUSH_DEFAULT + Duration::from_millis(300 + lot.below(500));
        storm.rest(life, "any moment, about 2,000 packets/s");
    }
    let sum = storm.settle();
    storm.print(&sum);
    assert!(sum.lost > 0, "no kill cost anything: the measurement is broken");
}
