//! What CloudWatch is told: a real PutMetricData, read back from LocalStack as sums over the group, and an outage that costs nothing.
//! Needs: root, S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic)]

use std::collections::BTreeMap;
use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, SystemTime};

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_cloudwatch::Client;
use aws_sdk_cloudwatch::primitives::DateTime;
use aws_sdk_cloudwatch::types::{Dimension, Statistic};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use tapfleet::observe::cloudwatch::{CloudWatch, Datum, Settings, Sink, Unit};
use tapfleet_tests::agent::{self, Agent, BUCKET};
use tapfleet_tests::localstack::{CREDENTIALS, LocalStack, REGION};
use tapfleet_tests::netns::{Pair, TAP};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Udp};

const GROUP: &str = "traffic-mirror-agents";

/// As an operator's dashboards name them.
const NAMES: [&str; 12] = [
    "Bytes",
    "BytesVerified",
    "DroppedEc2",
    "DroppedFiltered",
    "DroppedKernel",
    "DroppedMalformed",
    "DroppedNic",
    "DroppedPolicy",
    "Frames",
    "Heartbeat",
    "OldestUnverified",
    "SpoolBytes",
];

fn shared(endpoint: &str) -> SdkConfig {
    SdkConfig::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(REGION))
        .endpoint_url(endpoint)
        .credentials_provider(SharedCredentialsProvider::new(Credentials::new(CREDENTIALS, CREDENTIALS, None, None, "tests")))
        .build()
}

fn group() -> Dimension {
    Dimension::builder().name("AutoScalingGroupName").value(GROUP).build()
}

/// Sum and number of samples of the last minutes.
async fn total(client: &Client, namespace: &str, name: &str, dimension: Option<Dimension>) -> (f64, f64) {
    let now = SystemTime::now();
    let at = |time: SystemTime| DateTime::from(time);
    let answer = client
        .get_metric_statistics()
        .namespace(namespace)
        .metric_name(name)
        .set_dimensions(dimension.map(|dimension| vec![dimension]))
        .start_time(at(now - Duration::from_secs(600)))
        .end_time(at(now + Duration::from_secs(600)))
        .period(60)
        .statistics(Statistic::Sum)
        .statistics(Statistic::SampleCount)
        .send()
        .await
        .unwrap();
    let points = answer.datapoints();
    (points.iter().filter_map(|point| point.sum()).sum(), points.iter().filter_map(|point| point.sample_count()).sum())
}

/// Names of the metrics, each with its dimensions.
async fn listed(client: &Client, namespace: &str) -> BTreeMap<String, Vec<(String, String)>> {
    let answer = client.list_metrics().namespace(namespace).send().await.unwrap();
    let dimensions = |metric: &aws_sdk_cloudwatch::types::Metric| {
        metric.dimensions().iter().map(|d| (d.name().unwrap().to_owned(), d.value().unwrap().to_owned())).collect()
    };
    answer.metrics().iter().map(|metric| (metric.metric_name().unwrap().to_owned(), dimensions(metric))).collect()
}

#[tokio::test]
async fn reports_of_several_instances_add_up_under_their_group_and_without_one_under_the_namespace() {
    let localstack = LocalStack::shared();
    let shared = shared(&localstack.endpoint());
    let client = Client::new(&shared);
    for (namespace, of) in [("Tapfleet/Sums", Some(GROUP)), ("Tapfleet/Groupless", None)] {
        let settings = Settings { namespace: namespace.into(), group: of.map(Into::into), region: None };
        for frames in [5, 1 << 40] {
            let sink = CloudWatch::with_config(settings.clone(), shared.clone());
            let data =
                vec![Datum { name: "Frames", unit: Unit::Count, value: frames }, Datum { name: "SpoolBytes", unit: Unit::Bytes, value: 1 }];
            sink.put(data).await.unwrap();
        }
        assert_eq!(total(&client, namespace, "Frames", of.map(|_| group())).await, ((5u64 + (1 << 40)) as f64, 2.0), "{namespace}");
        let dimensions = of.map(|group| ("AutoScalingGroupName".to_owned(), group.to_owned()));
        let expected: Vec<_> = dimensions.into_iter().collect();
        assert_eq!(listed(&client, namespace).await, [("Frames".into(), expected.clone()), ("SpoolBytes".into(), expected)].into());
    }
}

#[tokio::test]
async fn a_cloudwatch_that_is_away_is_an_error_in_bounded_time() {
    let settings = Settings { namespace: "Tapfleet/Away".into(), group: None, region: None };
    let begun = std::time::Instant::now();
    let sink = CloudWatch::with_config(settings, shared("http://127.0.0.1:9"));
    let data = || vec![Datum { name: "Frames", unit: Unit::Count, value: 1 }];
    let error = sink.put(data()).await.unwrap_err();
    assert!(error.contains("dispatch failure") && begun.elapsed() < Duration::from_secs(20), "{error} after {:?}", begun.elapsed());
    assert!(sink.put(data()).await.is_err(), "and can be asked again");
}

#[test]
fn an_agent_tells_its_group_what_it_took_and_that_it_is_alive() {
    const NAMESPACE: &str = "Tapfleet/Agent";
    let pair = Pair::new();
    let localstack = LocalStack::start(Some(pair.tap.name()));
    let folder = tempfile::tempdir().unwrap();
    let ask = |work: &(dyn Fn(Client) -> std::pin::Pin<Box<dyn Future<Output = ()>>> + Sync)| {
        pair.tap.run(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(work(Client::new(&shared(&localstack.endpoint()))));
        });
    };
    pair.tap.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(localstack.bucket(BUCKET));
    });
    let settings = agent::Settings::new(&localstack.endpoint(), &folder.path().join("spool"))
        .set("capture.interface", TAP)
        .set("capture.ring_bytes", "16MiB")
        .set("record.rotate_seconds", 1)
        .set("instance.group", GROUP)
        .set("metrics.cloudwatch_namespace", NAMESPACE)
        .variable("AWS_ENDPOINT_URL_CLOUDWATCH", &localstack.endpoint());
    let mut agent = Agent::ready(Some(pair.tap.name()), &settings, folder.path());
    pair.source.run(|| {
        let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
        for _ in 0..30 {
            let frame = (Ethernet::default() / Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, 5001) / vec![7; 100]).build();
            socket.send_to(&Aws::default().gwlb_datagram(frame).build(), ("10.77.0.2", 6081)).unwrap();
            thread::sleep(Duration::from_millis(20));
        }
    });
    agent.wait_counters("all is verified", Duration::from_secs(30), |counters| {
        counters.get("frames_written") == 30 && counters.get("bytes_verified") > 0 && counters.get("spool_segments") == 0
    });
    // Its second of the minute comes; every look is short, as a first report is no matter of a time to be kept.
    agent.wait_for("it has reported once", Duration::from_secs(90), |_| localstack.log().contains("cloudwatch.PutMetricData => 200"));
    assert!(agent.stop(Duration::from_secs(10)).success());
    ask(&|client| {
        Box::pin(async move {
            let names = listed(&client, NAMESPACE).await;
            assert_eq!(names.keys().map(String::as_str).collect::<Vec<_>>(), NAMES);
            let of_group = vec![("AutoScalingGroupName".to_owned(), GROUP.to_owned())];
            assert!(names.values().all(|dimensions| *dimensions == of_group), "{names:?}");
            assert_eq!(total(&client, NAMESPACE, "Frames", Some(group())).await.0, 30.0);
            let (beats, _) = total(&client, NAMESPACE, "Heartbeat", Some(group())).await;
            assert!((1.0..=2.0).contains(&beats), "{beats}");
            assert!(total(&client, NAMESPACE, "BytesVerified", Some(group())).await.0 > 3000.0);
            assert_eq!(total(&client, NAMESPACE, "DroppedKernel", Some(group())).await.0, 0.0);
        })
    });
}
