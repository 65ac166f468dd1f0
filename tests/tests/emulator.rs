//! The modules made for real: Terraform's own provider against an AWS of several accounts on this host, and what that AWS refuses.
//! In: terraform/examples, tests/emulator. Never: reaches AWS; what AWS does with packets, and its own bugs, are not shown by it.
//! Needs: terraform, the provider hashicorp/aws (a mirror, else the registry), moto, S3.
//! Threads: 16
#![allow(missing_docs, clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, clippy::print_stdout)]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::Instant;

use aws_sdk_s3::error::ProvideErrorMetadata;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, CompletedMultipartUpload, CompletedPart};
use serde_json::{Value, json};
use tapfleet::upload::checksum;
use tapfleet_tests::emulator::{Account, DEPLOYMENT_ROLE, Emulator, REGION};
use tapfleet_tests::localstack;
use tapfleet_tests::terraform::{Example, Variables, sources};

/// Who runs Terraform: an account that has nothing.
const CALLER: &str = "999999999999";

const HUB: &str = "111111111111";
const SPOKES: [&str; 2] = ["222222222222", "333333333333"];
const FURTHER_SPOKE: &str = "444444444444";
const GOV_HUB: &str = "555555555555";
/// The hub's account is a spoke, too: who has two accounts.
const GOV_SPOKES: [&str; 2] = [GOV_HUB, "666666666666"];
const SINGLE: &str = "100000000001";
const EXISTING: &str = "100000000002";
const SENSOR: &str = "100000000003";

/// Who has which documents of terraform/deploy-policy attached to the role that Terraform assumes.
const DEPLOYERS: &[(&[&str], &[&str])] = &[
    (&[HUB], &["hub-network", "hub"]),
    (&[SPOKES[0], SPOKES[1], GOV_SPOKES[1]], &["spoke", "demo-sources"]),
    (&[FURTHER_SPOKE], &["spoke"]),
    (&[EXISTING], &["hub-network", "hub", "spoke"]),
    (&[SINGLE, SENSOR, GOV_HUB], &["hub-network", "hub", "spoke", "demo-sources"]),
];

/// What the policies allow that is no call of its own, or that no example makes, and why it is needed.
const EXPLAINED: &[(&str, &str)] = &[
    ("autoscaling:CancelInstanceRefresh", "a change while the instances of the one before are still replaced"),
    ("autoscaling:CreateOrUpdateTags", "a group that is made with tags"),
    ("autoscaling:DescribeInstanceRefreshes", "the same; the emulated ones are over at once"),
    ("cloudwatch:TagResource", "an alarm that is made with tags"),
    ("ec2:RunInstances", "a group with a launch template asks whether its maker might launch it"),
    ("elasticloadbalancing:AddTags", "a load balancer that is made with tags"),
    ("events:TagResource", "a rule that is made with tags"),
    ("iam:CreateServiceLinkedRole", "the first load balancer and the first group of an account"),
    ("iam:PassRole", "the roles that instances, the rule and the state machine get"),
    ("iam:PutRolePermissionsBoundary", "a boundary for roles that are there"),
    ("iam:TagInstanceProfile", "a profile that is made with tags"),
    ("iam:TagRole", "a role that is made with tags"),
    ("iam:UpdateAssumeRolePolicy", "a version of the modules that lets another service take a role"),
    ("kms:PutKeyPolicy", "a principal that is added"),
    ("kms:TagResource", "a key that is made with tags"),
    ("route53:AssociateVPCWithHostedZone", "the private names of interface endpoints"),
    ("s3:DeleteObjectVersion", "a lab's captures, which DeleteObjects deletes by version"),
    ("sns:TagResource", "a topic that is made with tags"),
    ("states:TagResource", "a state machine that is made with tags"),
    ("states:UpdateStateMachine", "a version of the modules with another one"),
];

/// A managed policy is no longer than this, without white space (IAM User Guide "IAM and AWS STS quotas").
const POLICY_LENGTH_MAX: usize = 6144;

/// Operations of S3 whose permission has another name (Service Authorization Reference "Actions defined by Amazon S3").
const S3_PERMISSIONS: &[(&str, &str)] = &[
    ("DeleteBucketEncryption", "PutEncryptionConfiguration"),
    ("DeleteBucketLifecycle", "PutLifecycleConfiguration"),
    ("DeleteBucketOwnershipControls", "PutBucketOwnershipControls"),
    ("DeleteBucketTagging", "PutBucketTagging"),
    ("DeleteObjects", "DeleteObject"),
    ("DeletePublicAccessBlock", "PutBucketPublicAccessBlock"),
    ("GetBucketAccelerateConfiguration", "GetAccelerateConfiguration"),
    ("GetBucketCors", "GetBucketCORS"),
    ("GetBucketEncryption", "GetEncryptionConfiguration"),
    ("GetBucketLifecycleConfiguration", "GetLifecycleConfiguration"),
    ("GetBucketReplication", "GetReplicationConfiguration"),
    ("GetObjectLockConfiguration", "GetBucketObjectLockConfiguration"),
    ("GetPublicAccessBlock", "GetBucketPublicAccessBlock"),
    ("HeadBucket", "ListBucket"),
    ("ListObjectVersions", "ListBucketVersions"),
    ("ListObjectsV2", "ListBucket"),
    ("PutBucketEncryption", "PutEncryptionConfiguration"),
    ("PutBucketLifecycleConfiguration", "PutLifecycleConfiguration"),
    ("PutPublicAccessBlock", "PutBucketPublicAccessBlock"),
];

/// Each example's life: made, nothing left to do, changed, nothing left to do, taken away. Once for all tests that ask about it.
static LIVES: [(&str, LazyLock<()>); 5] = [
    ("one-sensor", LazyLock::new(one_sensor)),
    ("single-account", LazyLock::new(single_account)),
    ("existing-vpc", LazyLock::new(existing_vpc)),
    ("hub-and-spoke and spoke-account", LazyLock::new(hub_and_spoke)),
    ("hub-and-spoke in aws-us-gov", LazyLock::new(hub_and_spoke_in_gov_cloud)),
];

fn lived(example: &str) {
    let begun = Instant::now();
    LazyLock::force(&LIVES.iter().find(|(name, _)| *name == example).unwrap().1);
    println!("{example}: {:.0} s", begun.elapsed().as_secs_f64());
}

#[test]
fn one_sensor_is_made_changed_replaced_and_taken_away_without_a_rest() {
    lived("one-sensor");
}

#[test]
fn hub_and_spoke_of_one_account_are_made_changed_and_taken_away() {
    lived("single-account");
}

#[test]
fn a_fleet_in_an_existing_vpc_leaves_that_vpc_as_it_was() {
    lived("existing-vpc");
}

#[test]
fn hub_and_spokes_of_three_accounts_are_made_get_a_further_spoke_and_are_taken_away() {
    lived("hub-and-spoke and spoke-account");
}

#[test]
fn a_hub_that_is_a_spoke_too_and_a_further_spoke_of_gov_cloud_bear_its_arns_and_a_boundary() {
    lived("hub-and-spoke in aws-us-gov");
}

fn one_sensor() {
    let account = Emulator::shared().account(SENSOR);
    let (image, newer_image) = (account.image(), account.image());
    let before = account.inventory();
    let mut example = example("one-sensor", SENSOR, &image, json!({"network": network("10.0.0.0/24", &["eu-central-1a"])}));
    example.apply();
    example.is_settled();

    let outputs = example.outputs();
    let sensor = instance(account, outputs["sensor_id"].as_str().unwrap());
    assert_eq!(sensor["ImageId"], image);
    is_a_sound_agent(account, &sensor, "captures-one-sensor");
    let target = only(account.ask("ec2", "describe_traffic_mirror_targets", &json!({})), "TrafficMirrorTargets");
    assert_eq!((&target["Type"], &target["NetworkInterfaceId"]), (&"network-interface".into(), interface(&sensor)));
    assert_eq!(sessions(account).len(), 2);
    assert_eq!(rules(account), (2, 2), "everything is IPv4 and IPv6, in and out");
    is_a_sound_bucket(account, "captures-one-sensor");

    // HTTP alone, and a newer image: a new sensor, whose target the sessions move to before the old one goes.
    example.set("mirror", "http");
    example.set("agent_ami_id", newer_image.clone());
    example.apply();
    example.is_settled();
    let outputs = example.outputs();
    let newer = instance(account, outputs["sensor_id"].as_str().unwrap());
    assert_eq!(newer["ImageId"], newer_image);
    let target = only(account.ask("ec2", "describe_traffic_mirror_targets", &json!({})), "TrafficMirrorTargets");
    assert_eq!(&target["NetworkInterfaceId"], interface(&newer));
    assert!(sessions(account).iter().all(|session| session["TrafficMirrorTargetId"] == target["TrafficMirrorTargetId"]));
    assert_eq!(rules(account), (2, 2), "HTTP is requests and replies, in and out");

    // Captures go with the lab.
    account.ask("s3", "put_object", &json!({"Bucket": "captures-one-sensor", "Key": "i-0/2026-11-22-00-15.pcap", "Body": "x"}));
    example.destroy();
    assert_eq!(account.inventory(), before);
}

fn single_account() {
    let account = Emulator::shared().account(SINGLE);
    let image = account.image();
    let before = account.inventory();
    let zones = ["eu-central-1a", "eu-central-1b"];
    let networks = json!({"hub_network": network("10.0.0.0/24", &zones), "source_network": network("10.1.0.0/24", &zones)});
    let mut example = example("single-account", SINGLE, &image, networks);
    example.apply();
    example.is_settled();

    let group = group(account);
    let agents = agents(account, &group);
    assert_eq!(agents.len(), 1);
    is_a_sound_agent(account, &agents[0], "captures-single-account");
    is_a_sound_hub(account, &[SINGLE]);
    is_a_sound_bucket(account, "captures-single-account");
    is_a_sound_topic(account);
    every_session_ends_in_its_zone(account);
    assert_eq!(sessions(account).len(), 2);

    // New settings reach the fleet: a new version of the template, the group on it, its instances made anew. So does a further zone.
    example.set("hub_network", network("10.0.0.0/24", &["eu-central-1a", "eu-central-1b", "eu-central-1c"]));
    example.set("default_tags", json!({"team": "network"}));
    example.set("settings", json!({"record": {"format": "pcapng"}}));
    example.set("traffic_mirror_asg_max_size", 6);
    example.set("src_ec2_count", 3);
    example.apply();
    example.is_settled();
    let changed = self::group(account);
    assert_eq!((&changed["MaxSize"], &changed["LaunchTemplate"]["Version"]), (&6.into(), &"2".into()));
    let newer = self::agents(account, &changed);
    assert_ne!(newer[0]["InstanceId"], agents[0]["InstanceId"], "the instance refresh left the old agent");
    assert!(account.settings(newer[0]["InstanceId"].as_str().unwrap()).contains("format = \"pcapng\""));
    let balancer = only(account.ask("elbv2", "describe_load_balancers", &json!({})), "LoadBalancers");
    assert_eq!(balancer["AvailabilityZones"].as_array().unwrap().len(), 3);
    assert_eq!(sessions(account).len(), 3);
    every_session_ends_in_its_zone(account);

    // An agent with captures that S3 has not protects itself from scale-in; who destroys the fleet means it.
    let (agent, group) = (newer[0]["InstanceId"].clone(), changed["AutoScalingGroupName"].clone());
    let protect = json!({"AutoScalingGroupName": group, "InstanceIds": [agent], "ProtectedFromScaleIn": true});
    account.ask("autoscaling", "set_instance_protection", &protect);
    // What stays is what was asked to be kept: the spool volumes of two generations of agents, found by their tag.
    example.destroy();
    let kept: Vec<_> = account.inventory().into_iter().filter(|thing| !before.contains(thing)).collect();
    assert!(kept.iter().all(|thing| thing.starts_with("ec2:vol-")), "left behind: {kept:?}");
    assert_eq!(spool_volumes(account).len(), kept.len(), "{kept:?}");
    assert!(kept.len() >= 2, "spool volumes went with their instances: {kept:?}");
}

fn existing_vpc() {
    let account = Emulator::shared().account(EXISTING);
    let image = account.image();
    let (vpc, subnet) = subnet(account, "10.3.0.0/24");
    let table = id(account, "create_route_table", json!({"VpcId": vpc}), "RouteTable");
    let source = id(account, "create_network_interface", json!({"SubnetId": subnet}), "NetworkInterface");
    let before = account.inventory();

    let place = json!({"vpc_id": vpc, "subnet_ids": {"eu-central-1a": subnet}, "route_table_ids": [table]});
    let mut example = example("existing-vpc", EXISTING, &image, place);
    example.apply();
    example.is_settled();
    is_a_sound_hub(account, &[EXISTING]);
    assert!(sessions(account).is_empty());
    let endpoints = account.ask("ec2", "describe_vpc_endpoints", &json!({}));
    let gateway = endpoints["VpcEndpoints"].as_array().unwrap().iter().find(|endpoint| endpoint["VpcEndpointType"] == "Gateway").unwrap();
    assert_eq!((&gateway["RouteTableIds"], &gateway["VpcId"]), (&json!([table]), &json!(vpc)));

    example.set("sessions", json!({"web": {"network_interface_id": source, "zone": "eu-central-1a"}}));
    example.apply();
    example.is_settled();
    assert_eq!(sessions(account)[0]["NetworkInterfaceId"], source);
    every_session_ends_in_its_zone(account);

    // The VPC's own endpoints in place of the module's.
    example.set("create_endpoints", false);
    example.apply();
    example.is_settled();
    let left = account.ask("ec2", "describe_vpc_endpoints", &json!({}));
    assert_eq!(only(left, "VpcEndpoints")["VpcEndpointType"], "GatewayLoadBalancer");

    example.destroy();
    let kept: Vec<_> = account.inventory().into_iter().filter(|thing| !before.contains(thing)).collect();
    assert!(kept.iter().all(|thing| thing.starts_with("ec2:vol-")) && !kept.is_empty(), "left behind: {kept:?}");
    assert!(before.iter().all(|thing| account.inventory().contains(thing)), "something that was there before is gone");
}

fn hub_and_spoke() {
    let emulator = Emulator::shared();
    let hub = emulator.account(HUB).let_terraform_in();
    let spokes = SPOKES.map(|id| emulator.account(id).let_terraform_in());
    let further = emulator.account(FURTHER_SPOKE).let_terraform_in();
    let (before, before_spokes) = (hub.inventory(), spokes.map(|spoke| spoke.inventory()));
    let mut example = example("hub-and-spoke", CALLER, &hub.image(), three_accounts(HUB, SPOKES, REGION));
    example.set("src_ec2_count", 2);
    example.apply();
    example.is_settled();

    is_a_sound_hub(hub, &SPOKES);
    is_a_sound_bucket(hub, "captures-hub-and-spoke");
    is_a_sound_topic(hub);
    let topic = example.outputs()["topic_arn"].as_str().unwrap().to_owned();
    let connections = hub.ask("ec2", "describe_vpc_endpoint_connections", &json!({}));
    let owners: Vec<_> = strings(&connections["VpcEndpointConnections"], "VpcEndpointOwner");
    assert_eq!(owners, [SPOKES[0], SPOKES[0], SPOKES[1], SPOKES[1]], "an endpoint for each spoke and zone");
    for spoke in spokes {
        assert_eq!(sessions(spoke).len(), 2);
        every_session_ends_in_its_zone(spoke);
        let alarms = spoke.ask("cloudwatch", "describe_alarms", &json!({}));
        assert_eq!(alarms["MetricAlarms"].as_array().unwrap().len(), 2, "one for each endpoint");
        assert!(alarms["MetricAlarms"].as_array().unwrap().iter().all(|alarm| alarm["AlarmActions"] == json!([topic])));
    }
    assert!(sessions(hub).is_empty() && spokes.iter().all(|spoke| buckets(*spoke).is_empty()), "a part of the hub stands in a spoke");

    // A further spoke is an entry here and a root of its own there; before the entry its endpoint is refused.
    let service = example.outputs()["gwlb_endpoint_service_name"].as_str().unwrap().to_owned();
    let (vpc, subnet) = subnet(further, "10.4.0.0/24");
    let interface = id(further, "create_network_interface", json!({"SubnetId": subnet}), "NetworkInterface");
    let endpoint = json!({"VpcId": vpc, "ServiceName": service, "VpcEndpointType": "GatewayLoadBalancer", "SubnetIds": [subnet]});
    assert_eq!(further.refusal("ec2", "create_vpc_endpoint", &endpoint), "InvalidServiceName");
    example.set("spoke_accounts", json!({"payments": FURTHER_SPOKE}));
    example.set("settings", json!({"record": {"format": "pcapng"}}));
    example.apply();
    example.is_settled();
    is_a_sound_hub(hub, &[SPOKES[0], SPOKES[1], FURTHER_SPOKE]);

    let before_further = further.inventory();
    let mut payments = self::example(
        "spoke-account",
        CALLER,
        "",
        json!({
            "account_id": FURTHER_SPOKE, "terraform_deployment_role": DEPLOYMENT_ROLE, "gwlb_endpoint_service_name": service,
            "alarm_topic_arn": topic, "vpc_id": vpc, "subnet_ids": {"eu-central-1a": subnet},
            "sessions": {"web": {"network_interface_id": interface, "virtual_network_id": 7}},
        }),
    );
    for unknown in ["s3_bucket_name", "sns_notify_email", "agent_ami_id"] {
        payments.variables.remove(unknown);
    }
    payments.apply();
    payments.is_settled();
    assert_eq!((sessions(further).len(), &sessions(further)[0]["VirtualNetworkId"]), (1, &7.into()));
    every_session_ends_in_its_zone(further);
    payments.set("filter", json!({"rules": [{"direction": "ingress", "protocol": 6, "ports": {"from": 443, "to": 443}}]}));
    payments.set("sessions", json!({"web": {"network_interface_id": interface, "packet_length": 128}}));
    payments.apply();
    payments.is_settled();
    assert_eq!((rules(further), &sessions(further)[0]["PacketLength"]), ((1, 0), &128.into()));
    payments.destroy();
    assert_eq!(further.inventory(), before_further);

    example.set("spoke_accounts", json!({}));
    example.apply();
    is_a_sound_hub(hub, &SPOKES);
    example.destroy();
    let kept: Vec<_> = hub.inventory().into_iter().filter(|thing| !before.contains(thing)).collect();
    assert!(kept.iter().all(|thing| thing.starts_with("ec2:vol-")), "left behind: {kept:?}");
    assert_eq!(spokes.map(|spoke| spoke.inventory()), before_spokes);
}

fn hub_and_spoke_in_gov_cloud() {
    const GOV: &str = "us-gov-west-1";
    let emulator = Emulator::shared();
    let hub = emulator.account(GOV_HUB).in_region(GOV).let_terraform_in();
    let spokes = [hub, emulator.account(GOV_SPOKES[1]).in_region(GOV).let_terraform_in()];
    let before = hub.inventory();
    let mut variables = three_accounts(GOV_HUB, GOV_SPOKES, GOV);
    variables["partition"] = "aws-us-gov".into();
    variables["s3_bucket_name"] = "captures-of-gov-cloud".into();
    let boundary = format!("arn:aws-us-gov:iam::{GOV_HUB}:policy/boundary");
    variables["permissions_boundary_arn"] = boundary.clone().into();
    let mut example = example("hub-and-spoke", CALLER, &hub.image(), variables);
    example.set("src_ec2_count", 1);
    example.apply();
    example.is_settled();

    is_a_sound_hub(hub, &GOV_SPOKES);
    is_a_sound_bucket(hub, "captures-of-gov-cloud");
    is_a_sound_topic(hub);
    let policy = hub.ask("s3", "get_bucket_policy", &json!({"Bucket": "captures-of-gov-cloud"}))["Policy"].to_string();
    let role = hub.ask("iam", "get_role_policy", &json!({"RoleName": format!("tapfleet-agent-{GOV}"), "PolicyName": "capture"}));
    for text in [policy, role["PolicyDocument"].to_string()] {
        assert!(text.contains("arn:aws-us-gov:") && !text.contains("arn:aws:"), "{text}");
    }
    let roles = hub.ask("iam", "list_roles", &json!({}))["Roles"].as_array().unwrap().clone();
    let made = strings(&Value::from(roles), "RoleName").into_iter().filter(|name| name.starts_with("tapfleet"));
    let bounds = made.map(|name| hub.ask("iam", "get_role", &json!({"RoleName": name}))["Role"]["PermissionsBoundary"].clone());
    let bounds: Vec<_> = bounds.map(|bound| bound["PermissionsBoundaryArn"].clone()).collect();
    assert_eq!(bounds, vec![Value::from(boundary); 3]);
    for spoke in spokes {
        every_session_ends_in_its_zone(spoke);
    }
    example.destroy();
    let kept: Vec<_> = hub.inventory().into_iter().filter(|thing| !before.contains(thing)).collect();
    assert!(kept.iter().all(|thing| thing.starts_with("ec2:vol-")), "left behind: {kept:?}");
}

/// An example with the variables that all of them have.
fn example(name: &str, account: &str, image: &str, further: Value) -> Example {
    let mut variables: Variables = serde_json::from_value(json!({
        "region": REGION, "s3_bucket_name": format!("captures-{name}"), "sns_notify_email": "network-team@example.com", "agent_ami_id": image,
    }))
    .unwrap();
    variables.extend(serde_json::from_value::<Variables>(further).unwrap());
    Example::new(name, Emulator::shared(), account, variables)
}

fn three_accounts(hub: &str, spokes: [&str; 2], region: &str) -> Value {
    let zones = [format!("{region}a"), format!("{region}b")];
    let subnets = |third: u8| json!({&zones[0]: format!("10.{third}.0.0/26"), &zones[1]: format!("10.{third}.0.64/26")});
    let spoke =
        |number: u8| json!({"name": format!("spoke-{number}"), "cidr": format!("10.{number}.0.0/24"), "private_subnets": subnets(number)});
    json!({
        "region": region, "hub_account_id": hub, "spoke_account_1_id": spokes[0], "spoke_account_2_id": spokes[1],
        "terraform_deployment_role": DEPLOYMENT_ROLE,
        "vpc_data_map": {"hub": {"cidr": "10.0.0.0/24", "private_subnets": subnets(0)}, "spoke_1": spoke(1), "spoke_2": spoke(2)},
    })
}

fn network(cidr: &str, zones: &[&str]) -> Value {
    let base = cidr.trim_end_matches("0/24");
    let subnets: BTreeMap<_, _> = zones.iter().enumerate().map(|(index, zone)| (*zone, format!("{base}{}/26", index * 64))).collect();
    json!({"cidr_block": cidr, "subnets": subnets})
}

/// Load balancer, endpoint service and who may use it.
fn is_a_sound_hub(account: Account<'_>, principals: &[&str]) {
    let balancer = only(account.ask("elbv2", "describe_load_balancers", &json!({})), "LoadBalancers");
    let arn = balancer["LoadBalancerArn"].as_str().unwrap();
    assert!(balancer["Type"] == "gateway" && arn.contains(":loadbalancer/gwy/"), "{balancer}");
    let listener = only(account.ask("elbv2", "describe_listeners", &json!({"LoadBalancerArn": arn})), "Listeners");
    let target_group = only(account.ask("elbv2", "describe_target_groups", &json!({})), "TargetGroups");
    assert_eq!(listener["DefaultActions"][0]["TargetGroupArn"], target_group["TargetGroupArn"]);
    assert_eq!((&target_group["Protocol"], &target_group["Port"]), (&"GENEVE".into(), &6081.into()));
    let service = only(account.ask("ec2", "describe_vpc_endpoint_service_configurations", &json!({})), "ServiceConfigurations");
    assert_eq!(service["ServiceType"][0]["ServiceType"], "GatewayLoadBalancer");
    assert_eq!(service["GatewayLoadBalancerArns"], json!([arn]));
    let allowed = account.ask("ec2", "describe_vpc_endpoint_service_permissions", &json!({"ServiceId": service["ServiceId"]}));
    let partition = arn.split(':').nth(1).unwrap();
    let wanted: BTreeSet<_> = principals.iter().map(|id| format!("arn:{partition}:iam::{id}:root")).collect();
    assert_eq!(strings(&allowed["AllowedPrincipals"], "Principal").into_iter().collect::<BTreeSet<_>>(), wanted);
    // The fleet stands behind it.
    assert_eq!(group(account)["TargetGroupARNs"], json!([target_group["TargetGroupArn"]]));
    let hooks = account.ask("autoscaling", "describe_lifecycle_hooks", &json!({"AutoScalingGroupName": "tapfleet-agents"}));
    assert_eq!(only(hooks, "LifecycleHooks")["DefaultResult"], "ABANDON");
}

fn is_a_sound_bucket(account: Account<'_>, name: &str) {
    let of = json!({"Bucket": name});
    assert_eq!(account.ask("s3", "get_bucket_versioning", &of)["Status"], "Enabled");
    let blocked = account.ask("s3", "get_public_access_block", &of);
    assert!(blocked["PublicAccessBlockConfiguration"].as_object().unwrap().values().all(|value| value == &Value::Bool(true)), "{blocked}");
    let encryption = account.ask("s3", "get_bucket_encryption", &of);
    let rule = &encryption["ServerSideEncryptionConfiguration"]["Rules"][0]["ApplyServerSideEncryptionByDefault"];
    let key = account.ask("kms", "describe_key", &json!({"KeyId": rule["KMSMasterKeyID"]}));
    assert_eq!((&rule["SSEAlgorithm"], &key["KeyMetadata"]["KeyState"]), (&"aws:kms".into(), &"Enabled".into()));
    let policy: Value = serde_json::from_str(account.ask("s3", "get_bucket_policy", &of)["Policy"].as_str().unwrap()).unwrap();
    assert_eq!(strings(&policy["Statement"], "Sid"), ["AgentsDeleteNothing", "CapturesAreWrittenOnce", "NothingInTheClear"]);
}

fn is_a_sound_topic(account: Account<'_>) {
    let topic = only(account.ask("sns", "list_topics", &json!({})), "Topics");
    let attributes = account.ask("sns", "get_topic_attributes", &topic);
    let key = account.ask("kms", "describe_key", &json!({"KeyId": attributes["Attributes"]["KmsMasterKeyId"]}));
    assert_eq!(key["KeyMetadata"]["KeyState"], "Enabled");
    let subscription = only(account.ask("sns", "list_subscriptions_by_topic", &topic), "Subscriptions");
    assert_eq!(
        (&subscription["Endpoint"], &subscription["SubscriptionArn"]),
        (&"network-team@example.com".into(), &"PendingConfirmation".into())
    );
}

/// IMDSv2 alone, the fleet's role, encrypted disks, a spool that is found by its tag, and settings that name the bucket.
fn is_a_sound_agent(account: Account<'_>, agent: &Value, bucket: &str) {
    assert_eq!(
        (&agent["MetadataOptions"]["HttpTokens"], &agent["MetadataOptions"]["HttpPutResponseHopLimit"]),
        (&"required".into(), &1.into())
    );
    assert!(agent["IamInstanceProfile"]["Arn"].as_str().unwrap().ends_with(&format!("-agent-{REGION}")), "{agent}");
    assert!(agent["PublicIpAddress"].is_null(), "an agent with a public address: {agent}");
    let mine = json!({"Filters": [{"Name": "attachment.instance-id", "Values": [agent["InstanceId"]]}]});
    let volumes = account.ask("ec2", "describe_volumes", &mine);
    let volumes = volumes["Volumes"].as_array().unwrap();
    assert_eq!(volumes.len(), 2, "root and spool");
    for volume in volumes {
        assert_eq!(volume["Encrypted"], true);
        assert!(volume["Tags"].as_array().unwrap().iter().any(|tag| tag["Key"] == "tapfleet:spool"), "{volume}");
    }
    let settings = account.settings(agent["InstanceId"].as_str().unwrap());
    assert!(settings.contains(&format!("bucket = \"{bucket}\"")) && settings.contains("topic_arn = \"arn:aws"), "{settings}");
}

/// Packets that leave their zone cost money, and the target's endpoint must be one that works.
fn every_session_ends_in_its_zone(account: Account<'_>) {
    for session in sessions(account) {
        let target =
            account.ask("ec2", "describe_traffic_mirror_targets", &json!({"TrafficMirrorTargetIds": [session["TrafficMirrorTargetId"]]}));
        let endpoint = &target["TrafficMirrorTargets"][0]["GatewayLoadBalancerEndpointId"];
        let endpoint = only(account.ask("ec2", "describe_vpc_endpoints", &json!({"VpcEndpointIds": [endpoint]})), "VpcEndpoints");
        assert_eq!(endpoint["State"], "available");
        let subnet = only(account.ask("ec2", "describe_subnets", &json!({"SubnetIds": endpoint["SubnetIds"]})), "Subnets");
        let source = account.ask("ec2", "describe_network_interfaces", &json!({"NetworkInterfaceIds": [session["NetworkInterfaceId"]]}));
        assert_eq!(only(source, "NetworkInterfaces")["AvailabilityZone"], subnet["AvailabilityZone"], "{session}");
    }
}

fn group(account: Account<'_>) -> Value {
    only(account.ask("autoscaling", "describe_auto_scaling_groups", &json!({})), "AutoScalingGroups")
}

fn agents(account: Account<'_>, group: &Value) -> Vec<Value> {
    let ids = group["Instances"].as_array().unwrap().iter().map(|one| one["InstanceId"].as_str().unwrap());
    ids.map(|id| instance(account, id)).collect()
}

fn instance(account: Account<'_>, id: &str) -> Value {
    account.ask("ec2", "describe_instances", &json!({"InstanceIds": [id]}))["Reservations"][0]["Instances"][0].clone()
}

fn interface(instance: &Value) -> &Value {
    &instance["NetworkInterfaces"][0]["NetworkInterfaceId"]
}

fn sessions(account: Account<'_>) -> Vec<Value> {
    account.ask("ec2", "describe_traffic_mirror_sessions", &json!({}))["TrafficMirrorSessions"].as_array().unwrap().clone()
}

/// How many rules of ingress and of egress the filter has.
fn rules(account: Account<'_>) -> (usize, usize) {
    let filter = only(account.ask("ec2", "describe_traffic_mirror_filters", &json!({})), "TrafficMirrorFilters");
    (filter["IngressFilterRules"].as_array().unwrap().len(), filter["EgressFilterRules"].as_array().unwrap().len())
}

fn spool_volumes(account: Account<'_>) -> Vec<Value> {
    let filters = json!({"Filters": [{"Name": "tag:tapfleet:spool", "Values": ["*"]}, {"Name": "status", "Values": ["available"]}]});
    account.ask("ec2", "describe_volumes", &filters)["Volumes"].as_array().unwrap().clone()
}

fn buckets(account: Account<'_>) -> Vec<Value> {
    account.ask("s3", "list_buckets", &json!({}))["Buckets"].as_array().unwrap().clone()
}

/// The one thing of a list.
fn only(mut answer: Value, list: &str) -> Value {
    let things = answer[list].as_array_mut().unwrap_or_else(|| panic!("no {list}"));
    assert_eq!(things.len(), 1, "{things:?}");
    things.remove(0)
}

/// The values of a field of each thing, sorted.
fn strings(things: &Value, field: &str) -> Vec<String> {
    let mut found: Vec<_> = things.as_array().unwrap().iter().map(|thing| thing[field].as_str().unwrap().to_owned()).collect();
    found.sort();
    found
}

#[test]
fn the_deploy_policies_allow_every_call_that_terraform_makes_and_nothing_else() {
    LIVES.iter().for_each(|(name, _)| lived(name));
    let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let calls = Emulator::shared().calls();
    for call in calls.iter().filter(|call| call.agent.starts_with("APN/") && call.service != "sts") {
        seen.entry(call.account.as_str()).or_default().insert(permission(&call.service, &call.action));
    }
    let mut wrong = Vec::new();
    let mut needed: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for (accounts, documents) in DEPLOYERS {
        let allowed: BTreeSet<_> = documents.iter().flat_map(|name| allowed(name)).collect();
        for made in accounts.iter().flat_map(|account| seen.remove(account).unwrap_or_else(|| panic!("no call to {account}"))) {
            if !allowed.contains(&made) {
                wrong.push(format!("none of {documents:?} allows {made}, which is called in {accounts:?}"));
            }
            documents.iter().for_each(|name| _ = needed.entry(name).or_default().insert(made.clone()));
        }
    }
    assert!(seen.keys().all(|account| *account == CALLER), "nobody says who deploys to {:?}", seen.keys());
    let mut explained: BTreeSet<_> = EXPLAINED.iter().map(|(action, _)| *action).collect();
    for (document, needed) in &needed {
        for action in allowed(document) {
            if !needed.contains(&action) && !EXPLAINED.iter().any(|(known, _)| *known == action) {
                wrong.push(format!("{document} allows {action}, which nobody calls"));
            }
            explained.remove(action.as_str());
        }
    }
    wrong.extend(explained.iter().map(|action| format!("{action} is explained, and in no policy")));
    wrong.sort();
    wrong.dedup();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The actions that a document of terraform/deploy-policy allows.
fn allowed(document: &str) -> BTreeSet<String> {
    let file = sources().join(format!("deploy-policy/{document}.json"));
    let text = std::fs::read_to_string(&file).unwrap_or_else(|cause| panic!("{}: {cause}", file.display()));
    let length = text.chars().filter(|c| !c.is_whitespace()).count();
    assert!(length <= POLICY_LENGTH_MAX, "{document} has {length} characters");
    let policy: Value = serde_json::from_str(&text).unwrap();
    let mut all = BTreeSet::new();
    for statement in policy["Statement"].as_array().unwrap() {
        assert_eq!(statement["Effect"], "Allow");
        for action in statement["Action"].as_array().unwrap().iter().map(|action| action.as_str().unwrap()) {
            assert!(!action.contains('*'), "{document}: '{action}' says nothing");
            all.insert(action.to_owned());
        }
    }
    all
}

/// What IAM calls the permission for an operation.
fn permission(service: &str, action: &str) -> String {
    let renamed = S3_PERMISSIONS.iter().find(|(operation, _)| service == "s3" && *operation == action);
    format!("{service}:{}", renamed.map_or(action, |(_, permission)| permission))
}

#[test]
fn an_unknown_action_is_refused_at_once_with_its_name() {
    let emulator = Emulator::shared();
    let account = emulator.account("200000000001");
    assert_eq!(account.refusal("ec2", "describe_verified_access_groups", &json!({})), "EmulatorUnsupported");
    let execution = json!({"executionArn": "arn:aws:states:eu-central-1:200000000001:execution:a:b"});
    assert_eq!(account.refusal("stepfunctions", "redrive_execution", &execution), "EmulatorUnsupported");
    // 400: what is 500 SDKs try again for minutes.
    let logged: Vec<_> = emulator.calls().into_iter().filter(|call| call.account == account.id).collect();
    let seen: Vec<_> = logged.iter().map(|call| (call.action.as_str(), call.status, call.error.as_str())).collect();
    let refused = |action| (action, 400, "EmulatorUnsupported");
    assert_eq!(seen, [refused("DescribeVerifiedAccessGroups"), refused("RedriveExecution")]);
}

#[test]
fn a_role_that_nobody_made_cannot_be_assumed_and_accounts_see_only_their_own() {
    let emulator = Emulator::shared();
    let (one, other) = (emulator.account("200000000002"), emulator.account("200000000003"));
    let assume = json!({"RoleArn": "arn:aws:iam::200000000003:role/terraform", "RoleSessionName": "test"});
    assert_eq!(one.refusal("sts", "assume_role", &assume), "AccessDenied");
    other.let_terraform_in();
    assert_eq!(one.ask("sts", "assume_role", &assume)["AssumedRoleUser"]["Arn"], "arn:aws:sts::200000000003:assumed-role/terraform/test");
    one.ask("s3", "create_bucket", &json!({"Bucket": "seen-by-its-owner", "CreateBucketConfiguration": {"LocationConstraint": REGION}}));
    assert_eq!((buckets(one).len(), buckets(other).len()), (1, 0));
    assert_eq!(one.ask("sns", "create_topic", &json!({"Name": "mine"}))["TopicArn"], format!("arn:aws:sns:{REGION}:200000000002:mine"));
    assert!(!other.inventory().iter().any(|thing| thing.contains("mine")));
}

#[test]
fn a_mirror_session_is_refused_where_traffic_mirroring_refuses_it() {
    let account = Emulator::shared().account("200000000004");
    let (_, subnet) = subnet(account, "10.9.0.0/24");
    let interface = || id(account, "create_network_interface", json!({"SubnetId": subnet}), "NetworkInterface");
    let (source, agent) = (interface(), interface());
    let target = id(account, "create_traffic_mirror_target", json!({"NetworkInterfaceId": agent}), "TrafficMirrorTarget");
    let filter = id(account, "create_traffic_mirror_filter", json!({}), "TrafficMirrorFilter");
    let session = |changes: Value| {
        let mut session = json!({
            "NetworkInterfaceId": source, "TrafficMirrorTargetId": target, "TrafficMirrorFilterId": filter, "SessionNumber": 1,
        });
        session.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        session
    };
    for (changes, refusal) in [
        (json!({"NetworkInterfaceId": "eni-00000000000000000"}), "InvalidNetworkInterfaceID.NotFound"),
        (json!({"TrafficMirrorTargetId": "tmt-00000000000000000"}), "InvalidTrafficMirrorTargetId.NotFound"),
        (json!({"TrafficMirrorFilterId": "tmf-00000000000000000"}), "InvalidTrafficMirrorFilterId.NotFound"),
        (json!({"SessionNumber": 0}), "InvalidParameterValue"),
        (json!({"SessionNumber": 32767}), "InvalidParameterValue"),
        (json!({"VirtualNetworkId": 1 << 24}), "InvalidParameterValue"),
        (json!({"PacketLength": 9000}), "InvalidParameterValue"),
    ] {
        assert_eq!(account.refusal("ec2", "create_traffic_mirror_session", &session(changes.clone())), refusal, "{changes}");
    }
    account.ask("ec2", "create_traffic_mirror_session", &session(json!({})));
    assert_eq!(account.refusal("ec2", "create_traffic_mirror_session", &session(json!({}))), "InvalidParameterValue", "a number twice");
    for number in [2, 3] {
        account.ask("ec2", "create_traffic_mirror_session", &session(json!({"SessionNumber": number})));
    }
    let fourth = account.refusal("ec2", "create_traffic_mirror_session", &session(json!({"SessionNumber": 4})));
    assert_eq!(fourth, "TrafficMirrorSessionsPerInterfaceLimitExceeded");
    for (action, thing, refusal) in [
        ("delete_traffic_mirror_filter", json!({"TrafficMirrorFilterId": filter}), "TrafficMirrorFilterInUse"),
        ("delete_traffic_mirror_target", json!({"TrafficMirrorTargetId": target}), "TrafficMirrorTargetInUseException"),
        (
            "delete_traffic_mirror_session",
            json!({"TrafficMirrorSessionId": "tms-00000000000000000"}),
            "InvalidTrafficMirrorSessionId.NotFound",
        ),
        (
            "create_traffic_mirror_target",
            json!({"GatewayLoadBalancerEndpointId": "vpce-00000000000000000"}),
            "InvalidVpcEndpointId.NotFound",
        ),
        ("create_traffic_mirror_target", json!({"NetworkLoadBalancerArn": "arn:aws:elasticloadbalancing:x"}), "InvalidParameterValue"),
    ] {
        assert_eq!(account.refusal("ec2", action, &thing), refusal);
    }
    let rule = |number: i32| {
        json!({
            "TrafficMirrorFilterId": filter, "TrafficDirection": "ingress", "RuleNumber": number, "RuleAction": "accept",
            "SourceCidrBlock": "0.0.0.0/0", "DestinationCidrBlock": "0.0.0.0/0",
        })
    };
    for number in 1..=10 {
        account.ask("ec2", "create_traffic_mirror_filter_rule", &rule(number));
    }
    assert_eq!(account.refusal("ec2", "create_traffic_mirror_filter_rule", &rule(11)), "TrafficMirrorFilterRuleLimitExceeded");
}

#[test]
fn an_endpoint_needs_a_service_that_is_there_a_principal_that_may_and_an_acceptance() {
    let emulator = Emulator::shared();
    let (owner, consumer) = (emulator.account("200000000005"), emulator.account("200000000006"));
    let (_, provided) = subnet(owner, "10.8.0.0/24");
    let balancer = owner.ask("elbv2", "create_load_balancer", &json!({"Name": "gwlb", "Type": "gateway", "Subnets": [provided]}));
    let balancer = balancer["LoadBalancers"][0]["LoadBalancerArn"].clone();
    let service = json!({"GatewayLoadBalancerArns": [balancer], "AcceptanceRequired": true});
    let service = owner.ask("ec2", "create_vpc_endpoint_service_configuration", &service)["ServiceConfiguration"].clone();
    let of = json!({"ServiceId": service["ServiceId"]});

    let (vpc, mine) = subnet(consumer, "10.9.0.0/24");
    let endpoint = |name: &Value| json!({"VpcId": vpc, "ServiceName": name, "VpcEndpointType": "GatewayLoadBalancer", "SubnetIds": [mine]});
    let unknown = json!("com.amazonaws.vpce.eu-central-1.vpce-svc-00000000000000000");
    for name in [&unknown, &service["ServiceName"]] {
        assert_eq!(consumer.refusal("ec2", "create_vpc_endpoint", &endpoint(name)), "InvalidServiceName", "{name}");
    }
    let may = json!({"ServiceId": service["ServiceId"], "AddAllowedPrincipals": ["arn:aws:iam::200000000006:root"]});
    owner.ask("ec2", "modify_vpc_endpoint_service_permissions", &may);
    let made = id(consumer, "create_vpc_endpoint", endpoint(&service["ServiceName"]), "VpcEndpoint");
    let state = || only(consumer.ask("ec2", "describe_vpc_endpoints", &json!({"VpcEndpointIds": [made]})), "VpcEndpoints")["State"].clone();
    assert_eq!(state(), "pendingAcceptance");
    let target = json!({"GatewayLoadBalancerEndpointId": made});
    assert_eq!(consumer.refusal("ec2", "create_traffic_mirror_target", &target), "InvalidParameterValue");
    owner.ask("ec2", "accept_vpc_endpoint_connections", &json!({"ServiceId": service["ServiceId"], "VpcEndpointIds": [made]}));
    assert_eq!(state(), "available");
    consumer.ask("ec2", "create_traffic_mirror_target", &target);

    // What is in use is not deleted.
    assert_eq!(owner.refusal("elbv2", "delete_load_balancer", &json!({"LoadBalancerArn": balancer})), "ResourceInUse");
    let services = json!({"ServiceIds": [of["ServiceId"]]});
    let left = owner.ask("ec2", "delete_vpc_endpoint_service_configurations", &services);
    assert_eq!(only(left, "Unsuccessful")["Error"]["Code"], "ExistingVpcEndpointConnections");
    consumer.ask("ec2", "delete_vpc_endpoints", &json!({"VpcEndpointIds": [made]}));
    assert_eq!(owner.ask("ec2", "delete_vpc_endpoint_service_configurations", &services)["Unsuccessful"], json!([]));
    owner.ask("elbv2", "delete_load_balancer", &json!({"LoadBalancerArn": balancer}));
}

#[test]
fn a_subscription_by_mail_waits_for_its_confirmation() {
    let account = Emulator::shared().account("200000000007");
    let topic = account.ask("sns", "create_topic", &json!({"Name": "alerts"}))["TopicArn"].clone();
    let subscribe = json!({"TopicArn": topic, "Protocol": "email", "Endpoint": "a@example.com", "ReturnSubscriptionArn": true});
    let made = account.ask("sns", "subscribe", &subscribe)["SubscriptionArn"].clone();
    let listed = account.ask("sns", "list_subscriptions_by_topic", &json!({"TopicArn": topic}));
    assert_eq!(only(listed, "Subscriptions")["SubscriptionArn"], "PendingConfirmation");
    let attributes = account.ask("sns", "get_subscription_attributes", &json!({"SubscriptionArn": made}));
    assert_eq!(attributes["Attributes"]["PendingConfirmation"], "true");
    assert_eq!(account.refusal("sns", "unsubscribe", &json!({"SubscriptionArn": made})), "InvalidParameter");
    // With the token of the mail, which here is the address.
    let confirm = |token: &str| json!({"TopicArn": topic, "Token": token});
    assert_eq!(account.refusal("sns", "confirm_subscription", &confirm("b@example.com")), "InvalidParameter");
    account.ask("sns", "confirm_subscription", &confirm("a@example.com"));
    let listed = account.ask("sns", "list_subscriptions_by_topic", &json!({"TopicArn": topic}));
    assert_eq!(only(listed, "Subscriptions")["SubscriptionArn"], made);
    account.ask("sns", "unsubscribe", &json!({"SubscriptionArn": made}));
}

#[tokio::test]
async fn s3_refuses_a_wrong_checksum_a_wrong_size_and_an_existing_key() {
    let emulator = Emulator::shared();
    let account = emulator.account("200000000008");
    let client = account.s3();
    localstack::make_bucket(&client, "checks-what-it-gets").await;
    let (bucket, key) = ("checks-what-it-gets", "i-0123456789abcdef0/2026-11-22-00-15.pcap");
    let (right, wrong) = (crc64(b"whole"), crc64(b"hole"));
    let put = || client.put_object().bucket(bucket).key(key).body(ByteStream::from_static(b"whole"));
    let refused = put().checksum_crc64_nvme(&wrong).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("BadDigest"), "{refused:?}");
    put().if_none_match("*").checksum_crc64_nvme(&right).send().await.unwrap();
    let refused = put().if_none_match("*").send().await.unwrap_err();
    assert_eq!(refused.code(), Some("PreconditionFailed"), "{refused:?}");

    let key = "i-0123456789abcdef0/2026-11-22-00-30.pcap";
    let parts = [vec![1_u8; 5 << 20], vec![2_u8; 1000]];
    let whole = parts.concat();
    let begun = client.create_multipart_upload().bucket(bucket).key(key);
    let begun = begun.checksum_algorithm(ChecksumAlgorithm::Crc64Nvme).checksum_type(ChecksumType::FullObject).send().await.unwrap();
    let upload = begun.upload_id().unwrap();
    let part = |number: i32, bytes: &[u8]| {
        let part = client.upload_part().bucket(bucket).key(key).upload_id(upload).part_number(number);
        part.body(ByteStream::from(bytes.to_vec())).checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
    };
    let refused = part(1, &parts[0]).checksum_crc64_nvme(&wrong).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("BadDigest"), "{refused:?}");
    let mut done = Vec::new();
    for (number, bytes) in (1..).zip(&parts) {
        let sent = part(number, bytes).send().await.unwrap();
        assert_eq!(sent.checksum_crc64_nvme(), Some(crc64(bytes).as_str()));
        done.push(CompletedPart::builder().part_number(number).e_tag(sent.e_tag().unwrap()).build());
    }
    let listed = client.list_parts().bucket(bucket).key(key).upload_id(upload).send().await.unwrap();
    assert_eq!(listed.parts().iter().map(|part| part.size().unwrap()).collect::<Vec<_>>(), [5 << 20, 1000]);
    assert_eq!(listed.parts()[1].checksum_crc64_nvme(), Some(crc64(&parts[1]).as_str()));
    let complete = || {
        let parts = CompletedMultipartUpload::builder().set_parts(Some(done.clone())).build();
        let complete = client.complete_multipart_upload().bucket(bucket).key(key).upload_id(upload).multipart_upload(parts);
        complete.checksum_type(ChecksumType::FullObject)
    };
    let refused = complete().checksum_crc64_nvme(&wrong).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("BadDigest"), "{refused:?}");
    let refused = complete().checksum_crc64_nvme(crc64(&whole)).mpu_object_size(7).send().await.unwrap_err();
    assert_eq!(refused.code(), Some("InvalidRequest"), "{refused:?}");
    complete().checksum_crc64_nvme(crc64(&whole)).mpu_object_size(whole.len() as i64).if_none_match("*").send().await.unwrap();
    let head = client.head_object().bucket(bucket).key(key).checksum_mode(ChecksumMode::Enabled).send().await.unwrap();
    assert_eq!((head.checksum_crc64_nvme(), head.checksum_type()), (Some(crc64(&whole).as_str()), Some(&ChecksumType::FullObject)));
    assert_eq!(head.content_length(), Some(whole.len() as i64));
    // Buckets have one owner, whom the request may name.
    for (account, owner) in [("200000000008", "200000000009"), ("200000000009", "200000000008"), ("200000000009", "200000000009")] {
        let asked = emulator.account(account).s3().head_bucket().bucket(bucket).expected_bucket_owner(owner).send().await.unwrap_err();
        assert_eq!(asked.raw_response().unwrap().status().as_u16(), 403, "{account}, {owner}");
    }
    client.head_bucket().bucket(bucket).expected_bucket_owner("200000000008").send().await.unwrap();
}

fn crc64(bytes: &[u8]) -> String {
    checksum::to_base64(checksum::of_bytes(bytes))
}

/// A VPC with one subnet.
fn subnet(account: Account<'_>, cidr: &str) -> (String, String) {
    let vpc = id(account, "create_vpc", json!({"CidrBlock": cidr}), "Vpc");
    let zone = format!("{REGION}a");
    let subnet = id(account, "create_subnet", json!({"VpcId": vpc, "CidrBlock": cidr, "AvailabilityZone": zone}), "Subnet");
    (vpc, subnet)
}

/// Makes a thing of EC2, and gives its id.
fn id(account: Account<'_>, action: &str, arguments: Value, thing: &str) -> String {
    account.ask("ec2", action, &arguments)[thing][format!("{thing}Id")].as_str().unwrap().to_owned()
}
