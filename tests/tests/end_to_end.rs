//! Both halves together: what Terraform makes, and the agent with the settings that Terraform gave its instance.
//! In: the examples, applied to an AWS in a network namespace; mirrored packets. Out: captures in its bucket, mails on its topic.
//! Needs: root, terraform, the provider hashicorp/aws (a mirror, else the registry), moto, S3.
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tapfleet_tests::agent::{Agent, Settings};
use tapfleet_tests::captures::records;
use tapfleet_tests::emulator::{Account, DEPLOYMENT_ROLE, Emulator, REGION};
use tapfleet_tests::netns::{Pair, SOURCE_V4, TAP, TAP_V4};
use tapfleet_tests::packet::{Aws, Ethernet, Ipv4, Packet, Udp};
use tapfleet_tests::terraform::{Example, Variables};

const HUB: &str = "111111111111";
const SPOKES: [&str; 2] = ["222222222222", "333333333333"];
/// In which the sender of the pair of namespaces lies, and so does who may send to the agents.
const NETWORK: &str = "10.77.0.0/24";
const FRAMES: u16 = 50;

#[test]
fn what_a_lab_mirrors_arrives_in_the_bucket_and_the_mail_on_the_topic_that_terraform_made() {
    let pair = Pair::new();
    let aws = Emulator::start(Some(pair.tap.name()));
    let hub = aws.account(HUB);
    let variables = json!({
        "region": REGION, "s3_bucket_name": "captures-of-a-lab", "sns_notify_email": "a@example.com", "agent_ami_id": hub.image(),
        "network": {"cidr_block": NETWORK, "subnets": {"eu-central-1a": "10.77.0.0/26"}},
    });
    let example = applied("one-sensor", &aws, HUB, variables);
    let sensor = example.outputs()["sensor_id"].as_str().unwrap().to_owned();
    let direct = |inner: Vec<u8>| Aws::default().direct_datagram(inner);
    captures_arrive(&pair, &aws, hub, &Fleet { name: "tapfleet-lab", bucket: "captures-of-a-lab", instance: &sensor }, 4789, direct);
}

#[test]
fn what_spokes_mirror_arrives_in_the_bucket_and_the_mail_on_the_topic_of_the_hub() {
    let pair = Pair::new();
    let aws = Emulator::start(Some(pair.tap.name()));
    let hub = aws.account(HUB).let_terraform_in();
    for spoke in SPOKES {
        let _ = aws.account(spoke).let_terraform_in();
    }
    let spoke = |number: u8| {
        let cidr = format!("10.{number}.0.0/24");
        json!({"name": format!("spoke-{number}"), "cidr": cidr, "private_subnets": {"eu-central-1a": cidr}})
    };
    let network = json!({"cidr": NETWORK, "private_subnets": {"eu-central-1a": "10.77.0.0/26"}});
    let variables = json!({
        "region": REGION, "s3_bucket_name": "captures-of-a-hub", "sns_notify_email": "a@example.com", "agent_ami_id": hub.image(),
        "hub_account_id": HUB, "spoke_account_1_id": SPOKES[0], "spoke_account_2_id": SPOKES[1],
        "terraform_deployment_role": DEPLOYMENT_ROLE, "key_prefix": "packet-captures/",
        "vpc_data_map": {"hub": network, "spoke_1": spoke(1), "spoke_2": spoke(2)},
    });
    let _example = applied("hub-and-spoke", &aws, "999999999999", variables);
    let group = hub.ask("autoscaling", "describe_auto_scaling_groups", &json!({}));
    let agent = group["AutoScalingGroups"][0]["Instances"][0]["InstanceId"].as_str().unwrap().to_owned();
    let through_balancer = |inner: Vec<u8>| Aws::default().gwlb_datagram(inner);
    let fleet = Fleet { name: "tapfleet", bucket: "captures-of-a-hub", instance: &agent };
    captures_arrive(&pair, &aws, hub, &fleet, 6081, through_balancer);
}

/// What Terraform made, by name.
struct Fleet<'a> {
    name: &'a str,
    bucket: &'a str,
    instance: &'a str,
}

/// The agent with its instance's settings and role takes packets, and what it took is where Terraform said.
fn captures_arrive(pair: &Pair, aws: &Emulator, hub: Account<'_>, fleet: &Fleet<'_>, port: u16, tunnel: impl Fn(Vec<u8>) -> Packet + Sync) {
    let folder = tempfile::tempdir().unwrap();
    let written = hub.settings(fleet.instance);
    println!("{written}");
    let topic = format!("arn:aws:sns:{REGION}:{}:{}-alerts", hub.id, fleet.name);
    // A person does it: until then the agent keeps its mails.
    hub.ask("sns", "confirm_subscription", &json!({"TopicArn": topic, "Token": "a@example.com"}));
    let role = format!("arn:aws:iam::{}:role/{}-agent-{REGION}", hub.id, fleet.name);
    let assumed = hub.ask("sts", "assume_role", &json!({"RoleArn": role, "RoleSessionName": fleet.instance}));
    let credential = |name: &str| assumed["Credentials"][name].as_str().unwrap().to_owned();
    // As written. Only what EC2 would say of the instance, and where this host has a disk and AWS stands, is said beside it.
    let settings = Settings::written(&written)
        .variable("AWS_ENDPOINT_URL", &aws.endpoint())
        .variable("AWS_ACCESS_KEY_ID", &credential("AccessKeyId"))
        .variable("AWS_SECRET_ACCESS_KEY", &credential("SecretAccessKey"))
        .variable("AWS_SESSION_TOKEN", &credential("SessionToken"))
        .variable("TAPFLEET__INSTANCE__ID", fleet.instance)
        .variable("TAPFLEET__INSTANCE__REGION", REGION)
        .variable("TAPFLEET__INSTANCE__AZ", "eu-central-1a")
        .variable("TAPFLEET__CAPTURE__INTERFACE", TAP)
        .variable("TAPFLEET__SPOOL__DIR", folder.path().join("spool").to_str().unwrap())
        .variable("TAPFLEET__SPOOL__MAX_BYTES", "1GiB")
        .variable("TAPFLEET__SPOOL__ALLOW_ROOT_DEVICE", "true")
        .variable("TAPFLEET__ALERT__DIR", folder.path().join("outbox").to_str().unwrap())
        .variable("TAPFLEET__ALERT__ON_START", "true");
    let mut agent = Agent::ready(Some(pair.tap.name()), &settings, folder.path());
    pair.source.run(|| {
        let socket = UdpSocket::bind((std::net::Ipv4Addr::from(SOURCE_V4), 0)).unwrap();
        for number in 0..FRAMES {
            socket.send_to(&tunnel(frame(number)).build(), (std::net::Ipv4Addr::from(TAP_V4), port)).unwrap();
        }
    });
    agent.wait_counters("every frame is written", Duration::from_secs(30), |counters| counters.get("frames_written") == u64::from(FRAMES));
    agent.wait_for("its mail is on the topic", Duration::from_secs(60), |_| {
        hub.published(&topic).iter().any(|mail| mail.contains(fleet.instance))
    });
    assert!(agent.stop(Duration::from_secs(60)).success());
    // A stop leaves what is not in S3 yet to the next agent, or to this command.
    let (code, said) = settings.command(Some(pair.tap.name()), folder.path(), &["spool", "upload"]);
    assert_eq!(code, Some(0), "{said}");

    let objects = hub.ask("s3", "list_objects_v2", &json!({"Bucket": fleet.bucket}));
    let keys: Vec<_> = objects["Contents"].as_array().unwrap().iter().map(|object| object["Key"].as_str().unwrap()).collect();
    let captures: Vec<_> = keys.iter().filter(|key| key.contains(&format!("{}/", fleet.instance)) && key.ends_with(".pcap")).collect();
    assert_eq!(captures.len(), 1, "{keys:?}");
    let stored: Vec<_> = records(&hub.object(fleet.bucket, captures[0])).into_iter().map(|record| record.bytes).collect();
    assert_eq!(stored, (0..FRAMES).map(frame).collect::<Vec<_>>());
    let head = hub.ask("s3", "head_object", &json!({"Bucket": fleet.bucket, "Key": captures[0]}));
    assert_eq!(head["ServerSideEncryption"], "aws:kms");
    assert!(keys.iter().any(|key| key.starts_with("manifest/")), "{keys:?}");
    let prefix = if written.contains("key_prefix = \"packet-captures/\"") { "packet-captures/" } else { "" };
    assert!(captures[0].starts_with(&format!("{prefix}{}/20", fleet.instance)), "{captures:?}");

    // Nothing of what it asked was refused; that a key is free is a 404. Whether its role allows it, the suite `terraform` judges.
    let calls: Vec<_> = aws.calls().into_iter().filter(|call| call.agent.starts_with("aws-sdk-rust")).collect();
    assert!(calls.iter().any(|call| call.action == "CompleteMultipartUpload" || call.action == "PutObject"), "{calls:?}");
    let refused: Vec<_> = calls.iter().filter(|call| call.status >= 400 && call.status != 404).collect();
    assert!(refused.is_empty(), "{refused:?}");
}

fn applied(name: &str, aws: &Emulator, account: &str, variables: Value) -> Example {
    let begun = Instant::now();
    let example = Example::new(name, aws, account, serde_json::from_value::<Variables>(variables).unwrap());
    example.apply();
    println!("{name}: applied in {:.0} s", begun.elapsed().as_secs_f64());
    example
}

fn frame(number: u16) -> Vec<u8> {
    (Ethernet::default() / Ipv4::new([192, 0, 2, 1], [198, 51, 100, 1]) / Udp::new(5000, number) / vec![7; 100]).build()
}
