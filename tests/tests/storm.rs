//! An agent that is killed again and again under live load: at each transition of its journal, and at any moment.
//! In: packets on a wire, LocalStack behind a gate, the daemon. Out: promise 4, counted from packets sent; the table of kills.
//! `TAPFLEET_SEED` has a storm again; `make soak` has more of them.
//! Needs: root, S3.
#![allow(missing_docs)]

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tapfleet_tests::storm::{Lot, act};

/// One after the other: each wants the processors for itself.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

#[test]
fn killed_five_times_at_each_transition_of_its_journal_the_agent_loses_at_most_the_last_flush_interval_and_stores_the_rest_once() {
    let _alone = alone();
    act::at_each_point(5);
}

#[test]
fn killed_a_hundred_times_at_any_moment_the_agent_loses_at_most_the_last_flush_interval_and_stores_the_rest_once() {
    let _alone = alone();
    act::at_any_moment(&mut Lot::drawn(), 80, 20);
}

#[test]
fn killed_while_s3_comes_and_goes_the_agent_loses_at_most_the_last_flush_interval_and_stores_the_rest_once() {
    let _alone = alone();
    act::while_s3_comes_and_goes(&mut Lot::drawn(), 20, Duration::from_millis(500));
}

#[test]
fn a_kill_at_default_settings_costs_at_most_the_last_flush_interval() {
    let _alone = alone();
    act::at_default_settings(&mut Lot::drawn(), 10);
}
