//! A hundred windows at full rate, with the upload going on beside: no packet may be lost.

use std::time::Duration;

use super::cage::Cage;
use super::contestants::{settings_with, start_agent};
use super::report::{Column, Contest, Figure, Verdict};
use super::store::Store;
use super::traffic::{Mix, ORIGINS, send};
use super::{Bench, tell};
use crate::netns::Pair;

const COLUMNS: &[Column] = &[Column::new("lost frames", 0), Column::new("windows", 0), Column::new("frames/s", 0)];

/// Runs it.
#[must_use]
pub fn run(bench: &Bench) -> Contest {
    let windows: u64 = bench.pick(10, 100);
    let (pair, cage, folder) = (Pair::new(), Cage::new(), bench.fresh_folder());
    let store = Store::start(pair.tap.name());
    let frames = Mix::Small.frames(ORIGINS);
    let top = send(&Pair::new(), &frames, 300_000, None);
    let settings = settings_with(&store, &folder).set("record.rotate_seconds", 1);
    let mut running = start_agent(&pair, &cage, &folder, &settings);
    tell(&format!("rotation, {windows} windows of a second"));
    let sent = send(&pair, &frames, (top.frames as f64 / top.seconds * windows as f64) as u64, None);
    // Each record has 16 bytes and the frame, each file 24.
    let record = 16 + sent.inner_bytes / sent.frames;
    let in_store = store.wait(sent.frames * record, Duration::from_secs(60)).is_some();
    running.settle(&cage);
    running.stop();
    let captures = store.captures();
    let arrived: u64 = captures.iter().map(|(_, object)| object.bytes.saturating_sub(24) / record).sum();
    // What is in the bucket may not have left the spool yet: only where packets are missing there does the spool count, and then a packet
    // that is in both is as bad as one that is in none.
    let lost = if in_store { sent.frames.abs_diff(arrived) } else { sent.frames.abs_diff(arrived + running.kept()) } as f64;
    let group = format!("{windows} windows");
    let figures = vec![Figure::new(group.as_str(), "tapfleetd", &[lost, captures.len() as f64, sent.frames as f64 / sent.seconds])];
    let verdicts = vec![Verdict::at_most(format!("packets lost in {windows} rotations at full rate"), lost, 0.0, "")];
    let notes = vec!["One turn. Small frames, as many as the sender's processor can send; the server shares that processor.".into()];
    Contest { name: "rotation", title: "Rotation at full rate".into(), notes, columns: COLUMNS, figures, verdicts }
}
