"""Launch templates and Auto Scaling: what moto forgets of a group, and what it invents of a hook.

EC2 API Reference CreateLaunchTemplate: tags of the template are not of what it launches. Auto Scaling API Reference: groups show
DefaultInstanceWarmup and InstanceMaintenancePolicy, hooks have a role only if one was given, policies say whether they are enabled;
StartInstanceRefresh makes instances anew, one refresh at a time; SetInstanceProtection keeps an instance only while it holds.
"""

import itertools
from typing import Any

from moto.autoscaling.models import AutoScalingBackend, FakeScalingPolicy, LifecycleHook
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.types import Base64EncodedString
from moto.core.utils import utcnow
from moto.ec2.models.launch_templates import LaunchTemplate
from moto.ec2.utils import parse_user_data

from .corrections import answers, corrects, refuse

# Settings of a group that moto drops, by their names in the API.
GROUP_SETTINGS = {
    "DefaultInstanceWarmup": "default_instance_warmup",
    "InstanceMaintenancePolicy": "instance_maintenance_policy",
    "TerminationPolicies": "termination_policies",
    "DefaultCooldown": "default_cooldown",
}

_refreshes = itertools.count(1)


@corrects(LaunchTemplate)
def create_version(original: Any, template: LaunchTemplate, data: dict[str, Any], description: str) -> Any:
    # moto adds the template's own tags to what is launched, and reads user data of the first version alone.
    tags = [tag for tag in data.get("TagSpecifications", []) if tag["ResourceType"] != "launch-template"]
    data = data | ({"TagSpecifications": tags} if tags else {})
    if not isinstance(data.get("UserData"), Base64EncodedString | None):
        data["UserData"] = parse_user_data(data["UserData"])
    return original(template, data, description)


def _tags(template: LaunchTemplate) -> list[dict[str, str]]:
    return template.get_tags()


# moto keeps those of the creation.
LaunchTemplate.tags = property(_tags, lambda *_: None)


@corrects(AutoScalingResponse)
def create_auto_scaling_group(original: Any, request: Any) -> Any:
    answer = original(request)
    keep_settings(request)
    return answer


@corrects(AutoScalingResponse)
def update_auto_scaling_group(original: Any, request: Any) -> Any:
    answer = original(request)
    keep_settings(request)
    return answer


def keep_settings(request: Any) -> None:
    group = group_of(request)
    for name, attribute in GROUP_SETTINGS.items():
        if (value := request._get_param(name)) is not None:
            setattr(group, attribute, value)


def group_of(request: Any) -> Any:
    name = request._get_param("AutoScalingGroupName")
    try:
        return request.autoscaling_backend.autoscaling_groups[name]
    except KeyError:
        raise refuse("ValidationError", f"AutoScalingGroup name not found - AutoScalingGroup '{name}' not found") from None


@corrects(AutoScalingResponse)
def set_instance_protection(original: Any, request: Any) -> Any:
    answer = original(request)
    # What the group was kept from doing it does when the protection is gone.
    group = group_of(request)
    group.set_desired_capacity(group.desired_capacity)
    return answer


@answers(AutoScalingResponse)
def disable_metrics_collection(request: Any) -> dict[str, Any]:
    group = group_of(request)
    names = request._get_param("Metrics", []) or list(group.metrics)
    group.metrics = [metric for metric in group.metrics if metric not in names]
    return {}


@corrects(LifecycleHook)
def __init__(original: Any, hook: LifecycleHook, *arguments: Any, **named: Any) -> None:  # noqa: N807
    original(hook, *arguments, **named)
    hook.role_arn = None
    hook.notification_target_arn = None


@corrects(AutoScalingBackend)
def put_scaling_policy(original: Any, backend: AutoScalingBackend, *arguments: Any, **named: Any) -> FakeScalingPolicy:
    policy = original(backend, *arguments, **named)
    policy.enabled = True
    policy.predictive_scaling_configuration = policy.predictive_scaling_configuration or None
    return policy


@answers(AutoScalingResponse)
def start_instance_refresh(request: Any) -> dict[str, Any]:
    group = group_of(request)
    refreshes = group.__dict__.setdefault("refreshes", [])
    identity = f"00000000-0000-0000-0000-{next(_refreshes):012d}"
    refreshes.append(
        {
            "InstanceRefreshId": identity,
            "AutoScalingGroupName": group.name,
            "Status": "Successful",
            "StartTime": utcnow(),
            "EndTime": utcnow(),
            "PercentageComplete": 100,
            "InstancesToUpdate": 0,
            "Preferences": request._get_param("Preferences") or {},
        }
    )
    wanted = group.desired_capacity
    group.set_desired_capacity(0)
    group.set_desired_capacity(wanted)
    return {"InstanceRefreshId": identity}


@answers(AutoScalingResponse)
def describe_instance_refreshes(request: Any) -> dict[str, Any]:
    wanted = request._get_param("InstanceRefreshIds", [])
    refreshes = group_of(request).__dict__.get("refreshes", [])
    return {"InstanceRefreshes": [one for one in reversed(refreshes) if not wanted or one["InstanceRefreshId"] in wanted]}


@answers(AutoScalingResponse)
def cancel_instance_refresh(request: Any) -> dict[str, Any]:
    raise refuse("ActiveInstanceRefreshNotFound", f"No in progress instance refresh found for group {group_of(request).name}")


@answers(AutoScalingResponse)
def record_lifecycle_action_heartbeat(request: Any) -> dict[str, Any]:
    return lifecycle_action(request)


@answers(AutoScalingResponse)
def complete_lifecycle_action(request: Any) -> dict[str, Any]:
    return lifecycle_action(request)


def lifecycle_action(request: Any) -> dict[str, Any]:
    # moto's instances go at once: there is none that waits.
    group, hook = group_of(request), request._get_param("LifecycleHookName")
    if f"{group.name}_{hook}" not in request.autoscaling_backend.lifecycle_hooks:
        raise refuse("ValidationError", f"No active Lifecycle Action found with hook '{hook}' of group '{group.name}'")
    raise refuse("ValidationError", f"No active Lifecycle Action found with instance ID {request._get_param('InstanceId')}")
