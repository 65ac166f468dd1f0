//! Once a minute to Amazon CloudWatch: the only file that names its SDK.
//! In: counters, what the interface lost, the time. Out: PutMetricData. What did not arrive goes with the next minute's.
//! Never: a dimension per instance; holds anything up; takes an outage of CloudWatch for a trouble of capture.
//! Spec: Amazon CloudWatch API Reference, PutMetricData.
//!
//! Sums are what came since the last report, so that CloudWatch's `Sum` over a group is the group's; of levels take `Maximum` or
//! `Average`. No stamps: CloudWatch refuses those of a clock that is off. A lost reply counts its minute twice.

use std::collections::hash_map::DefaultHasher;
use std::future::Future;
use std::hash::{Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::config::retry::RetryConfig;
use aws_sdk_cloudwatch::config::timeout::TimeoutConfig;
use aws_sdk_cloudwatch::error::DisplayErrorContext;
use aws_sdk_cloudwatch::types::{Dimension, MetricDatum, StandardUnit};
use tokio::sync::watch as channel;
use tokio::time::{sleep, timeout};

use super::counters::{Count, Counters};
use super::health::{self, Facts};
use crate::host::clock::{Clock, SECOND_NS};
use crate::wire::Drop;

/// The dimension that all metrics have, where there is a group.
const DIMENSION: &str = "AutoScalingGroupName";

const MINUTE_NS: u64 = 60 * SECOND_NS;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(8);
const ATTEMPTS: u32 = 2;
/// All attempts together: well within the minute.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// What a stopping agent still tells gets this long.
const LAST_TRY: Duration = Duration::from_secs(1);

/// How often a failure is said again, in reports.
const SAY_EVERY: u32 = 60;

/// Where the metrics go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// `metrics.cloudwatch_namespace`.
    pub namespace: String,
    /// The Auto Scaling group; `None`: the metrics have no dimension.
    pub group: Option<String>,
    /// The region; `None`: as the AWS tools find it.
    pub region: Option<String>,
}

/// What a number is counted in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unit {
    /// Frames, agents.
    Count,
    /// Bytes.
    Bytes,
    /// Seconds.
    Seconds,
}

/// One number of a report.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Datum {
    /// Its stable name: dashboards and alarms hold it.
    pub name: &'static str,
    /// See [`Unit`].
    pub unit: Unit,
    /// The number.
    pub value: u64,
}

/// Who takes reports: the seam at which tests put a failing one.
pub trait Sink: Send + Sync + 'static {
    /// Takes one; an error is in words and says that it shall be told again.
    fn put(&self, data: Vec<Datum>) -> impl Future<Output = Result<(), String>> + Send;
}

/// Reads what the interface and EC2 have dropped, totals that begin anew with the interface.
pub type Losses = Box<dyn FnMut() -> [u64; 2] + Send>;

/// How a sum is read from the counters.
type Read = fn(&Counters) -> u64;

/// The sums, but for those of [`LOSSES`].
const SUMS: [(&str, Unit, Read); 7] = [
    ("Frames", Unit::Count, |c| c.frames_written.get()),
    ("Bytes", Unit::Bytes, |c| c.bytes_written.get()),
    ("BytesVerified", Unit::Bytes, |c| c.bytes_verified.get()),
    ("DroppedKernel", Unit::Count, |c| c.kernel_drops.get()),
    ("DroppedMalformed", Unit::Count, |c| dropped(c, Drop::is_malformed)),
    ("DroppedFiltered", Unit::Count, |c| dropped(c, is_filtered)),
    ("DroppedPolicy", Unit::Count, |c| dropped(c, |reason| !reason.is_malformed() && !is_filtered(reason))),
];

/// What [`Losses`] reads. EC2's are queued or dropped: an upper bound.
const LOSSES: [&str; 2] = ["DroppedNic", "DroppedEc2"];

fn dropped(counters: &Counters, class: fn(Drop) -> bool) -> u64 {
    Drop::ALL.iter().zip(&counters.drops).filter(|(reason, _)| class(**reason)).map(|(_, count)| Count::get(count)).sum()
}

/// What the settings did not want; the rest of the drops by policy is for want of room.
const fn is_filtered(reason: Drop) -> bool {
    matches!(reason, Drop::SourceDenied | Drop::Filtered | Drop::OutOfSchedule)
}

/// What was counted and is not known to have arrived.
struct Ledger {
    losses: Losses,
    seen: [u64; SUMS.len()],
    lost: [u64; LOSSES.len()],
    owed: [u64; SUMS.len()],
    owed_losses: [u64; LOSSES.len()],
}

impl Ledger {
    fn new(counters: &Counters, mut losses: Losses) -> Self {
        let lost = losses();
        Self { losses, seen: SUMS.map(|(.., read)| read(counters)), lost, owed: [0; SUMS.len()], owed_losses: [0; LOSSES.len()] }
    }

    /// What is to be told now. `healthy`: of a minute's report; what a stopping agent tells is no sign of life.
    fn report(&mut self, counters: &Counters, healthy: Option<bool>) -> Vec<Datum> {
        let now = SUMS.map(|(.., read)| read(counters));
        for ((owed, seen), now) in self.owed.iter_mut().zip(&mut self.seen).zip(now) {
            *owed += now.saturating_sub(*seen);
            *seen = now;
        }
        let now = (self.losses)();
        for ((owed, lost), now) in self.owed_losses.iter_mut().zip(&mut self.lost).zip(now) {
            // An interface that was made anew counts from zero.
            *owed += now.checked_sub(*lost).unwrap_or(now);
            *lost = now;
        }
        let heartbeat = healthy.map(|healthy| Datum { name: "Heartbeat", unit: Unit::Count, value: healthy.into() });
        let sums = SUMS.iter().zip(self.owed).map(|(&(name, unit, _), value)| Datum { name, unit, value });
        let losses = LOSSES.iter().zip(self.owed_losses).map(|(&name, value)| Datum { name, unit: Unit::Count, value });
        let levels = [
            Datum { name: "SpoolBytes", unit: Unit::Bytes, value: counters.spool_bytes.get() },
            Datum { name: "OldestUnverified", unit: Unit::Seconds, value: counters.spool_oldest_seconds.get() },
        ];
        heartbeat.into_iter().chain(sums).chain(losses).chain(levels).collect()
    }

    fn arrived(&mut self) {
        self.owed = [0; SUMS.len()];
        self.owed_losses = [0; LOSSES.len()];
    }
}

/// Reports once a minute until `stop`, then what is left. The second of the minute is the instance's own: each minute gets one
/// report of each instance, and a fleet's do not come at once.
pub async fn run<S: Sink, C: Clock>(
    counters: Arc<Counters>,
    facts: Facts,
    losses: Losses,
    sink: S,
    clock: C,
    mut stop: channel::Receiver<bool>,
) {
    let second = second_of(&facts.instance);
    let mut ledger = Ledger::new(&counters, losses);
    let mut failures = 0;
    loop {
        let stopping = tokio::select! {
            _ = stop.wait_for(|&stop| stop) => true,
            () = sleep(until(second, clock.now().wall_ns)) => false,
        };
        let healthy = (!stopping).then(|| health::judge(&counters, &facts, clock.now()).healthy);
        let put = sink.put(ledger.report(&counters, healthy));
        let told = if stopping { timeout(LAST_TRY, put).await } else { in_time(put, &mut stop).await };
        // Who was silent in the last moment is not asked for another one.
        let last = stopping || (told.is_err() && *stop.borrow());
        match told.unwrap_or_else(|_| Err("it took too long".into())) {
            Ok(()) => {
                ledger.arrived();
                if failures > 0 {
                    tracing::info!(failures, "CloudWatch takes metrics again");
                }
                failures = 0;
            }
            Err(cause) => {
                if failures % SAY_EVERY == 0 {
                    tracing::warn!(
                        "cannot put metrics to CloudWatch: {cause}; what was counted is told later. May the role cloudwatch:PutMetricData?"
                    );
                }
                failures = failures.saturating_add(1);
            }
        }
        if last {
            return;
        }
    }
}

/// Waits for a report; once the agent stops, only a little longer.
async fn in_time<T>(put: impl Future<Output = T>, stop: &mut channel::Receiver<bool>) -> Result<T, tokio::time::error::Elapsed> {
    let put = timeout(CALL_TIMEOUT, put);
    tokio::pin!(put);
    let told = tokio::select! {
        told = &mut put => Some(told),
        _ = stop.wait_for(|&stop| stop) => None,
    };
    match told {
        Some(told) => told,
        None => timeout(LAST_TRY, put).await?,
    }
}

/// A second of the minute, away from its ends: a report that is a little early or late still falls into its minute.
fn second_of(instance: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    instance.hash(&mut hasher);
    10 + hasher.finish() % 40
}

/// How long until that second comes next.
fn until(second: u64, wall_ns: u64) -> Duration {
    let into_minute = wall_ns % MINUTE_NS;
    let at = second * SECOND_NS;
    Duration::from_nanos(if at > into_minute { at - into_minute } else { at + MINUTE_NS - into_minute })
}

/// The sink that is Amazon CloudWatch.
#[derive(Debug)]
pub struct CloudWatch {
    settings: Settings,
    /// Credentials, region and endpoint that were handed over; else they are looked for.
    shared: Option<SdkConfig>,
    /// Kept while it works: with a new one go dead connections, old addresses and expired credentials.
    client: tokio::sync::Mutex<Option<Client>>,
}

impl CloudWatch {
    /// Credentials and endpoint come from the environment as the AWS tools take them. Asks nobody yet.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self { settings, shared: None, client: tokio::sync::Mutex::default() }
    }

    /// One that takes credentials, region and endpoint from `shared`.
    #[must_use]
    pub fn with_config(settings: Settings, shared: SdkConfig) -> Self {
        Self { shared: Some(shared), ..Self::new(settings) }
    }

    async fn connect(&self) -> Client {
        let shared = match &self.shared {
            Some(shared) => shared.clone(),
            None => {
                let mut loader = aws_config::defaults(BehaviorVersion::latest());
                if let Some(region) = &self.settings.region {
                    loader = loader.region(Region::new(region.clone()));
                }
                loader.load().await
            }
        };
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(ATTEMPT_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(CALL_TIMEOUT);
        let config = aws_sdk_cloudwatch::config::Builder::from(&shared)
            .timeout_config(timeouts.build())
            .retry_config(RetryConfig::standard().with_max_attempts(ATTEMPTS));
        Client::from_conf(config.build())
    }
}

impl Sink for CloudWatch {
    async fn put(&self, data: Vec<Datum>) -> Result<(), String> {
        let mut kept = self.client.lock().await;
        // Put back only when it has worked.
        let client = match kept.take() {
            Some(client) => client,
            None => self.connect().await,
        };
        let group = self.settings.group.as_ref().map(|group| Dimension::builder().name(DIMENSION).value(group).build());
        let metrics = data.iter().map(|datum| {
            let unit = match datum.unit {
                Unit::Count => StandardUnit::Count,
                Unit::Bytes => StandardUnit::Bytes,
                Unit::Seconds => StandardUnit::Seconds,
            };
            MetricDatum::builder()
                .metric_name(datum.name)
                .unit(unit)
                .value(datum.value as f64)
                .set_dimensions(group.clone().map(|group| vec![group]))
                .build()
        });
        let call = client.put_metric_data().namespace(&self.settings.namespace).set_metric_data(Some(metrics.collect()));
        call.send().await.map_err(|error| DisplayErrorContext(&error).to_string())?;
        *kept = Some(client);
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::host::clock::{Now, SystemClock};

    fn value(data: &[Datum], name: &str) -> u64 {
        data.iter().find(|datum| datum.name == name).unwrap_or_else(|| panic!("no {name} in {data:?}")).value
    }

    #[test]
    fn what_did_not_arrive_is_told_with_the_next_minute_and_what_did_is_not_told_again() {
        let counters = Counters::new(1);
        counters.frames_written.add(1000);
        let mut ledger = Ledger::new(&counters, Box::new(|| [0, 0]));
        counters.frames_written.add(5);
        counters.bytes_verified.add(70);
        let data = ledger.report(&counters, Some(true));
        assert_eq!((value(&data, "Frames"), value(&data, "BytesVerified")), (5, 70), "what was before is not ours to tell");
        counters.frames_written.add(2);
        assert_eq!(value(&ledger.report(&counters, Some(true)), "Frames"), 7);
        ledger.arrived();
        counters.frames_written.add(1);
        assert_eq!(value(&ledger.report(&counters, Some(true)), "Frames"), 1);
    }

    #[test]
    fn each_drop_is_in_one_class() {
        let counters = Counters::new(1);
        let mut ledger = Ledger::new(&counters, Box::new(|| [0, 0]));
        for reason in Drop::ALL {
            counters.drops[reason.index()].add(1);
            let data = ledger.report(&counters, None);
            let classes = ["DroppedMalformed", "DroppedFiltered", "DroppedPolicy"].map(|class| value(&data, class));
            assert_eq!(classes.iter().sum::<u64>(), 1, "{reason:?}");
            assert_eq!(classes[0] == 1, reason.is_malformed(), "{reason:?}");
            assert!(reason != Drop::SpoolFull || classes[2] == 1);
            ledger.arrived();
        }
        counters.kernel_drops.add(4);
        assert_eq!(value(&ledger.report(&counters, None), "DroppedKernel"), 4);
    }

    #[test]
    fn losses_of_an_interface_that_was_made_anew_are_counted_from_zero() {
        let mut totals = [[10, 100], [13, 100], [2, 5]].into_iter();
        let counters = Counters::new(1);
        let mut ledger = Ledger::new(&counters, Box::new(move || totals.next().unwrap()));
        let data = ledger.report(&counters, None);
        assert_eq!((value(&data, "DroppedNic"), value(&data, "DroppedEc2")), (3, 0));
        let data = ledger.report(&counters, None);
        assert_eq!((value(&data, "DroppedNic"), value(&data, "DroppedEc2")), (5, 5));
    }

    #[test]
    fn an_instance_reports_once_in_each_minute_at_its_own_second() {
        let seconds: std::collections::BTreeSet<u64> = (0..200).map(|n| second_of(&format!("i-{n}"))).collect();
        assert!(seconds.len() > 20 && seconds.iter().all(|second| (10..50).contains(second)), "{seconds:?}");
        let mut wall_ns = 1_795_306_500 * SECOND_NS + 7;
        for minute in 0..10 {
            wall_ns += until(42, wall_ns).as_nanos() as u64;
            assert_eq!(wall_ns, (1_795_306_500 + 60 * minute + 42) * SECOND_NS);
        }
    }

    /// Remembers what it took, and can refuse.
    #[derive(Clone, Default)]
    struct Taken(Arc<Mutex<Vec<Vec<Datum>>>>, Arc<AtomicBool>);

    impl Sink for Taken {
        async fn put(&self, data: Vec<Datum>) -> Result<(), String> {
            if self.1.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            self.0.lock().unwrap().push(data);
            Ok(())
        }
    }

    /// Just before the instance's second.
    struct Eve;

    impl Clock for Eve {
        fn now(&self) -> Now {
            Now { wall_ns: second_of("i-1") * SECOND_NS - 20_000_000, ..SystemClock.now() }
        }
    }

    #[tokio::test]
    async fn a_stopping_agent_tells_the_rest_without_a_heartbeat_and_does_not_wait_for_a_sink_that_hangs() {
        let facts = Facts { instance: "i-1".into(), since: SystemClock.now(), live: true };
        for hangs in [false, true] {
            let (counters, sink, (stop, stopping)) = (Arc::new(Counters::new(1)), Taken::default(), channel::channel(false));
            let task = tokio::spawn(run(counters.clone(), facts.clone(), Box::new(|| [0, 0]), sink.clone(), Eve, stopping));
            while sink.0.lock().unwrap().is_empty() {
                sleep(Duration::from_millis(5)).await;
            }
            sink.1.store(hangs, Ordering::SeqCst);
            sleep(Duration::from_millis(100)).await;
            counters.frames_written.add(3);
            stop.send(true).unwrap();
            timeout(LAST_TRY * 3 / 2, task).await.unwrap_or_else(|_| panic!("it holds the end up")).unwrap();
            let taken = sink.0.lock().unwrap();
            assert_eq!(value(&taken[0], "Heartbeat"), 1);
            if !hangs {
                let last = taken.last().unwrap();
                assert!(!last.iter().any(|datum| datum.name == "Heartbeat"), "{last:?}");
                assert_eq!(taken.iter().map(|data| value(data, "Frames")).sum::<u64>(), 3);
            }
        }
    }
}
