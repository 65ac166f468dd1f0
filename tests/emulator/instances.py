"""What an instance takes from its image, its launch template and its interface, where moto forgets it.

EC2 API Reference RunInstances: a disk without a size is as large as the image's; what the request does not say the launch template does
(moto: not the role, the metadata options, the monitoring, the tags of volumes). DescribeInstances: in a VPC the groups are those of the
first interface. TerminateInstances: an interface that was made with the instance goes with it.
"""

from typing import Any

from moto.core.types import Base64EncodedString
from moto.ec2.models.instances import Instance, InstanceBackend
from moto.ec2.responses import instances as responses
from moto.ec2.responses.instances import InstanceResponse
from moto.ec2.utils import convert_tag_spec, parse_user_data

from .corrections import corrects

IMAGE_GIB = 8

_check_disk = InstanceResponse._validate_block_device_mapping


def _with_size(mapping: dict[str, Any]) -> None:
    disk = mapping.get("Ebs", {})
    if disk and not disk.get("SnapshotId"):
        disk.setdefault("VolumeSize", IMAGE_GIB)
    _check_disk(mapping)


InstanceResponse._validate_block_device_mapping = staticmethod(_with_size)


def _read_user_data(value: Any) -> Any:
    # ModifyInstanceAttribute has a blob, which its parser has decoded; RunInstances has a text, which nobody has.
    return Base64EncodedString.from_raw_bytes(value) if isinstance(value, bytes) else parse_user_data(value)


responses.parse_user_data = _read_user_data


@corrects(InstanceBackend)
def run_instances(original: Any, backend: Any, image_id: str, *arguments: Any, **named: Any) -> Any:
    wanted = named.get("launch_template")
    template = backend._get_template_from_args(wanted).data if wanted else {}
    named["metadata_options"] = template.get("MetadataOptions", {}) | named.get("metadata_options", {})
    named["ebs_optimized"] = named.get("ebs_optimized") or template.get("EbsOptimized", False)
    if template.get("Monitoring", {}).get("Enabled"):
        named["monitoring_state"] = "enabled"
    if template and "block_device_mappings" not in named:
        named["block_device_mappings"] = template.get("BlockDeviceMappings", [])
    tags = convert_tag_spec(template.get("TagSpecifications", []))
    given = named.get("tags") or {}
    named["tags"] = {resource: tags.get(resource, {}) | given.get(resource, {}) for resource in tags.keys() | given.keys()}
    reservation = original(backend, image_id or template.get("ImageId"), *arguments, **named)
    profile = template.get("IamInstanceProfile", {})
    if profile and not (named.get("iam_instance_profile_name") or named.get("iam_instance_profile_arn")):
        for instance in reservation.instances:
            backend.associate_iam_instance_profile(instance.id, profile.get("Name"), profile.get("Arn"))
    return reservation


def _groups(instance: Instance) -> list[Any]:
    first = instance.__dict__.get("nics", {}).get(0)
    return first._group_set if first else instance.__dict__["given_groups"]


def _set_groups(instance: Instance, groups: list[Any]) -> None:
    instance.__dict__["given_groups"] = groups
    if first := instance.__dict__.get("nics", {}).get(0):
        first._group_set = groups


Instance.security_groups = property(_groups, _set_groups)


@corrects(Instance)
def terminate(original: Any, instance: Instance, *arguments: Any, **named: Any) -> Any:
    # InstanceNetworkInterfaceSpecification: what is made with the instance goes with it, unless it is told otherwise.
    made = [nic for nic in instance.nics.values() if nic.description == "Primary network interface"]
    answer = original(instance, *arguments, **named)
    for nic in made:
        instance.ec2_backend.enis.pop(nic.id, None)
    return answer
