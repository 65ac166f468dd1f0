//! In: the counters. Out: the same numbers for Prometheus (OpenMetrics text) and for `/status` (JSON), from one list.
//! Never: leaves a counter out: the list takes [`Counters`] apart field by field, so a new one does not compile without a name.
//! Spec: OpenMetrics 1.0 (counters end in `_total`).

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric, MetricEncoder};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::{Map, Value};

use super::counters::{Count, Counters, Offset};
use crate::wire::{Drop, Ignored};

/// As HTTP names the text of [`text`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What a number does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// Only grows.
    Sum,
    /// Goes up and down.
    Level,
}

/// A number, or one per reason.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Numbers {
    One(u64),
    Signed(i64),
    ByReason(Vec<(&'static str, u64)>),
}

#[derive(Clone, Debug)]
struct Series {
    name: &'static str,
    help: &'static str,
    kind: Kind,
    numbers: Numbers,
}

fn sum(name: &'static str, count: &Count, help: &'static str) -> Series {
    Series { name, help, kind: Kind::Sum, numbers: Numbers::One(count.get()) }
}

fn level(name: &'static str, count: &Count, help: &'static str) -> Series {
    Series { name, help, kind: Kind::Level, numbers: Numbers::One(count.get()) }
}

fn offset(name: &'static str, offset: &Offset, help: &'static str) -> Series {
    Series { name, help, kind: Kind::Level, numbers: Numbers::Signed(offset.get()) }
}

fn by_reason(name: &'static str, reasons: Vec<(&'static str, u64)>, help: &'static str) -> Series {
    Series { name, help, kind: Kind::Sum, numbers: Numbers::ByReason(reasons) }
}

/// Every counter with its name. Pulses are not here: health tells what they say.
fn series(counters: &Counters) -> Vec<Series> {
    let Counters {
        kernel_packets,
        kernel_drops,
        kernel_freezes,
        frames_written,
        bytes_written,
        frames_late,
        frames_quarantined,
        drops,
        ignored,
        notes_cut,
        notes_missing_gwlb_options,
        notes_repeated_option,
        notes_runt,
        tee_frames,
        tee_drops,
        segments_opened,
        segments_closed,
        gaps,
        clock_steps,
        clock_answers,
        clock_ahead_us,
        spool_bytes,
        spool_capacity,
        segments_given_way,
        frames_given_way,
        bytes_given_way,
        recording_stopped,
        writing_since_ns: _,
        syncing_since_ns: _,
        spool_segments,
        spool_oldest_seconds,
        parts_sent,
        bytes_sent,
        segments_verified,
        bytes_verified,
        upload_failures,
        upload_refusals,
        credential_refusals,
        clock_refusals,
        segments_failing_seconds,
        upload_progress,
        segments_poison,
        segments_finished,
        statuses_told,
        uploads_resumed,
        key_collisions,
        mails_waiting,
        mail_failures,
        leaving,
        leaving_ended,
        leaving_unsent,
        recorder: _,
        captures: _,
        upload_rounds: _,
        clock_expected_ns: _,
        clock_answered_ns: _,
    } = counters;
    let drops = Drop::ALL.iter().zip(drops).map(|(reason, count)| (reason.name(), count.get())).collect();
    let ignored = Ignored::ALL.iter().zip(ignored).map(|(reason, count)| (reason.name(), count.get())).collect();
    let notes = vec![
        ("cut", notes_cut.get()),
        ("missing_gwlb_options", notes_missing_gwlb_options.get()),
        ("repeated_option", notes_repeated_option.get()),
        ("runt", notes_runt.get()),
    ];
    vec![
        sum("kernel_packets", kernel_packets, "Packets that passed the kernel filter, drops included."),
        sum("kernel_drops", kernel_drops, "Of those, dropped for want of a free ring block."),
        sum("kernel_freezes", kernel_freezes, "How often a ring stood still."),
        sum("frames_written", frames_written, "Frames written to segments."),
        sum("bytes_written", bytes_written, "Captured bytes of the frames written, without record headers."),
        sum("frames_late", frames_late, "Frames that came after their window had closed and were written to the open one."),
        sum("frames_quarantined", frames_quarantined, "Malformed frames kept in quarantine."),
        by_reason("drops", drops, "Frames not written, by reason."),
        by_reason("ignored", ignored, "Frames that were none of ours, by reason."),
        by_reason("notes", notes, "Frames written although something about them was odd, by reason."),
        sum("tee_frames", tee_frames, "Mirrored frames that also went out of the tee's interface."),
        sum("tee_drops", tee_drops, "Those that the tee's interface did not take in time; they are recorded all the same."),
        sum("segments_opened", segments_opened, "Segments opened."),
        sum("segments_closed", segments_closed, "Segments closed."),
        sum("gaps", gaps, "Times an interface went away."),
        sum("clock_steps", clock_steps, "Steps of the wall clock."),
        sum("clock_answers", clock_answers, "Answers of the time server."),
        offset("clock_ahead_us", clock_ahead_us, "Microseconds by which the wall clock was ahead of the time server at its last answer."),
        level("spool_bytes", spool_bytes, "Bytes in the spool: data, journals and manifests."),
        level("spool_capacity", spool_capacity, "The most it can hold now, by spool.max_bytes and by its file system."),
        sum("segments_given_way", segments_given_way, "Segments whose data were dropped to make room for newer ones."),
        sum("frames_given_way", frames_given_way, "Frames of those."),
        sum("bytes_given_way", bytes_given_way, "Captured bytes of those."),
        level("recording_stopped", recording_stopped, "1 while recording has stopped because the spool was full."),
        level("spool_segments", spool_segments, "Segments in the spool that S3 has not confirmed."),
        level("spool_oldest_seconds", spool_oldest_seconds, "Seconds since the oldest of them was opened."),
        sum("parts_sent", parts_sent, "Parts that S3 took."),
        sum("bytes_sent", bytes_sent, "Bytes of the parts that S3 took."),
        sum("segments_verified", segments_verified, "Captures that S3 confirmed by size, checksum and capture id."),
        sum("bytes_verified", bytes_verified, "Bytes of the captures that S3 confirmed."),
        sum("upload_failures", upload_failures, "Calls to S3 that failed; each is tried again."),
        sum("upload_refusals", upload_refusals, "Of those, refused: no such bucket, or not allowed."),
        sum("credential_refusals", credential_refusals, "Of the failed, those whose credentials were refused."),
        sum("clock_refusals", clock_refusals, "Of the failed, those refused for a clock that differs."),
        level(
            "segments_failing_seconds",
            segments_failing_seconds,
            "Seconds since the segment that fails longest last got further; 0 when none fails.",
        ),
        sum(
            "upload_progress",
            upload_progress,
            "Grows whenever a segment that grows no more gets further: a part more than ever, or its end.",
        ),
        level("segments_poison", segments_poison, "Segments that are damaged, or have failed for a day while others got through."),
        sum("segments_finished", segments_finished, "Segments that have left the spool, windows without frames included."),
        sum("statuses_told", statuses_told, "Times that S3 took the object which says what is unsent."),
        sum("uploads_resumed", uploads_resumed, "Multipart uploads taken up again after a restart."),
        level("mails_waiting", mails_waiting, "Mails about troubles that the topic has not taken yet."),
        sum("mail_failures", mail_failures, "Times that the topic did not take a mail; each is tried again."),
        level("leaving", leaving, "1 while the instance is to leave."),
        level("leaving_ended", leaving_ended, "1 when capture has been ended for that."),
        level("leaving_unsent", leaving_unsent, "1 while the instance goes with segments that S3 has not confirmed."),
        sum("key_collisions", key_collisions, "Keys that were taken when we came to them."),
    ]
}

/// The counters as a JSON object; what is counted by reason is an object of the reasons that occurred.
#[must_use]
pub fn json(counters: &Counters) -> Map<String, Value> {
    let numbers = |series: Series| match series.numbers {
        Numbers::One(n) => (series.name.to_owned(), n.into()),
        Numbers::Signed(n) => (series.name.to_owned(), n.into()),
        Numbers::ByReason(reasons) => {
            let occurred = reasons.into_iter().filter(|(_, n)| *n > 0).map(|(reason, n)| (reason.to_owned(), n.into()));
            (series.name.to_owned(), Value::Object(occurred.collect()))
        }
    };
    series(counters).into_iter().map(numbers).collect()
}

/// The counters for Prometheus, with the agent's version and health.
#[must_use]
pub fn text(counters: &Counters, version: &'static str, healthy: bool) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Snapshot { series: series(counters), version, healthy }));
    let mut out = String::new();
    // Writing to memory does not fail.
    let _ = encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Snapshot {
    series: Vec<Series>,
    version: &'static str,
    healthy: bool,
}

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let mut build = encoder.encode_descriptor("tapfleet_build", "Version of the agent.", None, MetricType::Info)?;
        build.encode_info(&[("version", self.version)])?;
        let help = "Whether the load balancer is told that this agent is healthy.";
        one(encoder.encode_descriptor("tapfleet_healthy", help, None, MetricType::Gauge)?, Kind::Level, self.healthy.into())?;
        for series in &self.series {
            let name = format!("tapfleet_{}", series.name);
            let kind = if series.kind == Kind::Sum { MetricType::Counter } else { MetricType::Gauge };
            let mut metric = encoder.encode_descriptor(&name, series.help, None, kind)?;
            match &series.numbers {
                Numbers::One(n) => one(metric, series.kind, *n)?,
                Numbers::Signed(n) => ConstGauge::new(*n).encode(metric)?,
                Numbers::ByReason(reasons) => {
                    for (reason, n) in reasons {
                        one(metric.encode_family(&[("reason", *reason)])?, series.kind, *n)?;
                    }
                }
            }
        }
        Ok(())
    }
}

fn one(encoder: MetricEncoder<'_>, kind: Kind, n: u64) -> Result<(), std::fmt::Error> {
    match kind {
        Kind::Sum => ConstCounter::new(n).encode(encoder),
        Kind::Level => ConstGauge::new(n).encode(encoder),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use super::*;

    fn counted() -> Counters {
        let counters = Counters::new(2);
        counters.frames_written.add(7);
        counters.spool_bytes.set(u64::MAX);
        counters.drops[Drop::GeneveCritical.index()].add(3);
        counters.notes_runt.add(2);
        counters.clock_ahead_us.set(-1500);
        counters
    }

    #[test]
    fn every_number_stands_in_the_metrics_under_its_stable_name() {
        let text = text(&counted(), "1.2.3", true);
        for line in [
            "tapfleet_frames_written_total 7",
            "tapfleet_spool_bytes 18446744073709551615",
            "tapfleet_drops_total{reason=\"geneve_critical\"} 3",
            "tapfleet_drops_total{reason=\"spool_full\"} 0",
            "tapfleet_ignored_total{reason=\"not_udp\"} 0",
            "tapfleet_notes_total{reason=\"runt\"} 2",
            "tapfleet_healthy 1",
            "tapfleet_clock_ahead_us -1500",
            "tapfleet_build_info{version=\"1.2.3\"} 1",
            "# TYPE tapfleet_frames_written counter",
            "# TYPE tapfleet_spool_bytes gauge",
            "# HELP tapfleet_gaps Times an interface went away.",
        ] {
            assert!(text.lines().any(|l| l == line), "no line {line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let reasons = text.lines().filter(|l| l.starts_with("tapfleet_drops_total{")).count();
        assert_eq!(reasons, Drop::ALL.len());
    }

    #[test]
    fn the_status_shows_the_same_numbers_and_only_reasons_that_occurred() {
        let json = json(&counted());
        assert_eq!(json["frames_written"], 7);
        assert_eq!(json["drops"], serde_json::json!({ "geneve_critical": 3 }));
        assert_eq!(json["ignored"], serde_json::json!({}));
        assert_eq!(json["spool_bytes"], u64::MAX);
        assert_eq!(json["clock_ahead_us"], -1500);
    }
}
