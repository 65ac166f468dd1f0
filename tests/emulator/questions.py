"""`python -m emulator.questions URL`: asks as AWS's own SDK does. A line of JSON in, a line of JSON out, until the input ends.

In: `{"account", "region", "service", "action", "arguments"}`. Out: `{"answer": …}`, or `{"error": code, "message": …}`. Actions of no
service: `inventory` answers what an account has in a region, a list of `service:id`; `published` the subjects of the mails to
`TopicArn`; `settings` the agent's settings out of the user data of `InstanceId`.
"""

import base64
import functools
import json
import sys
import urllib.request
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

# Service, action, the list in its answer, and what identifies one of it.
INVENTORY = (
    ("autoscaling", "describe_auto_scaling_groups", "AutoScalingGroups", "AutoScalingGroupName"),
    ("autoscaling", "describe_policies", "ScalingPolicies", "PolicyName"),
    ("cloudwatch", "describe_alarms", "MetricAlarms", "AlarmName"),
    ("cloudwatch", "list_dashboards", "DashboardEntries", "DashboardName"),
    ("ec2", "describe_instances", "Reservations", "ReservationId"),
    ("ec2", "describe_launch_templates", "LaunchTemplates", "LaunchTemplateName"),
    ("ec2", "describe_network_interfaces", "NetworkInterfaces", "NetworkInterfaceId"),
    ("ec2", "describe_route_tables", "RouteTables", "RouteTableId"),
    ("ec2", "describe_security_groups", "SecurityGroups", "GroupId"),
    ("ec2", "describe_security_group_rules", "SecurityGroupRules", "SecurityGroupRuleId"),
    ("ec2", "describe_subnets", "Subnets", "SubnetId"),
    ("ec2", "describe_traffic_mirror_filters", "TrafficMirrorFilters", "TrafficMirrorFilterId"),
    ("ec2", "describe_traffic_mirror_filter_rules", "TrafficMirrorFilterRules", "TrafficMirrorFilterRuleId"),
    ("ec2", "describe_traffic_mirror_sessions", "TrafficMirrorSessions", "TrafficMirrorSessionId"),
    ("ec2", "describe_traffic_mirror_targets", "TrafficMirrorTargets", "TrafficMirrorTargetId"),
    ("ec2", "describe_volumes", "Volumes", "VolumeId"),
    ("ec2", "describe_vpcs", "Vpcs", "VpcId"),
    ("ec2", "describe_vpc_endpoints", "VpcEndpoints", "VpcEndpointId"),
    ("ec2", "describe_vpc_endpoint_service_configurations", "ServiceConfigurations", "ServiceId"),
    ("elbv2", "describe_load_balancers", "LoadBalancers", "LoadBalancerArn"),
    ("elbv2", "describe_target_groups", "TargetGroups", "TargetGroupArn"),
    ("events", "list_rules", "Rules", "Name"),
    ("iam", "list_instance_profiles", "InstanceProfiles", "InstanceProfileName"),
    ("iam", "list_roles", "Roles", "RoleName"),
    ("kms", "list_aliases", "Aliases", "AliasName"),
    ("kms", "list_keys", "Keys", "KeyId"),
    ("s3", "list_buckets", "Buckets", "Name"),
    ("sns", "list_subscriptions", "Subscriptions", "Endpoint"),
    ("sns", "list_topics", "Topics", "TopicArn"),
    ("stepfunctions", "list_state_machines", "stateMachines", "name"),
)


class Questions:
    """What can be asked at one URL."""

    def __init__(self, url: str) -> None:
        self._url = url

    # It lives as long as the process.
    @functools.cache  # noqa: B019
    def client(self, account: str, region: str, service: str) -> Any:
        config = Config(retries={"max_attempts": 0}, s3={"addressing_style": "path"})
        keys = {"aws_access_key_id": account, "aws_secret_access_key": "none"}
        return boto3.client(service, region_name=region, endpoint_url=self._url, config=config, **keys)

    def ask(self, question: dict[str, Any]) -> Any:
        account, region = question["account"], question["region"]
        if question["action"] == "inventory":
            return sorted(self.inventory(account, region))
        if question["action"] == "published":
            return self.published(question["arguments"]["TopicArn"])
        if question["action"] == "settings":
            return self.settings(self.client(account, region, "ec2"), question["arguments"]["InstanceId"])
        client = self.client(account, region, question["service"])
        return getattr(client, question["action"])(**question["arguments"])

    def inventory(self, account: str, region: str) -> Iterator[str]:
        for service, action, field, name in INVENTORY:
            client = self.client(account, region, service)
            for thing in getattr(client, action)()[field]:
                if not self.is_gone(client, service, thing):
                    yield f"{service}:{thing[name]}"

    def published(self, topic_arn: str) -> list[str]:
        with urllib.request.urlopen(f"{self._url}/moto-api/data.json") as held:
            topics = json.load(held)["sns"]["Topic"]
        # Id, message, subject, attributes, group.
        return [sent[2] for topic in topics if topic["arn"] == topic_arn for sent in topic["sent_notifications"]]

    @staticmethod
    def settings(client: Any, instance: str) -> str:
        """What user data writes into the file of the settings."""
        script = client.describe_instance_attribute(InstanceId=instance, Attribute="userData")["UserData"]["Value"]
        text = base64.b64decode(script).decode()
        return base64.b64decode(text.split("<<'SETTINGS'\n")[1].split("\n")[0]).decode()

    @staticmethod
    def is_gone(client: Any, service: str, thing: dict[str, Any]) -> bool:
        """What AWS still lists for a while, or makes by itself."""
        if "Instances" in thing:
            return all(instance["State"]["Name"] == "terminated" for instance in thing["Instances"])
        if service == "kms" and "KeyId" in thing:
            owned = [alias["AliasName"] for alias in client.list_aliases(KeyId=thing["KeyId"])["Aliases"]]
            key = client.describe_key(KeyId=thing["KeyId"])["KeyMetadata"]
            return key["KeyState"] == "PendingDeletion" or any(name.startswith("alias/aws/") for name in owned)
        return thing.get("AliasName", "").startswith("alias/aws/")


def as_json(value: Any) -> str:
    """Bytes and files as text of a character for each byte, all else (times) as text."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return as_json(value.read()) if hasattr(value, "read") else str(value)


def main() -> None:
    questions = Questions(sys.argv[1])
    for line in sys.stdin:
        try:
            told = {"answer": questions.ask(json.loads(line))}
        except ClientError as refused:
            told = {"error": refused.response["Error"]["Code"], "message": refused.response["Error"].get("Message", "")}
        except Exception as wrong:  # Any: who asks shall hear of it, and not wait for ever.
            told = {"error": type(wrong).__name__, "message": str(wrong)}
        print(json.dumps(told, default=as_json), flush=True)


if __name__ == "__main__":
    main()
