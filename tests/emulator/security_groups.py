"""Rules of security groups: what describes one that names a group or a prefix list, which moto forgets.

EC2 API Reference AuthorizeSecurityGroupIngress: UserIdGroupPair and PrefixListId have a Description, as ranges have.
"""

from typing import Any

from moto.ec2.models.security_groups import SecurityGroupBackend, SecurityGroupRule

from .corrections import corrects


def _description(rule: SecurityGroupRule) -> str | None:
    return rule.ip_range.get("Description") or rule.__dict__.get("described")


SecurityGroupRule.description = property(_description)


def describe(rules: list[SecurityGroupRule], named: dict[str, Any]) -> None:
    peers = (named.get("source_groups") or []) + (named.get("prefix_list_ids") or [])
    told = [peer["Description"] for peer in peers if peer.get("Description")]
    for rule in rules:
        rule.__dict__["described"] = told[0] if told else None


@corrects(SecurityGroupBackend)
def authorize_security_group_ingress(original: Any, backend: Any, **named: Any) -> Any:
    rules, group = original(backend, **named)
    describe(rules, named)
    return rules, group


@corrects(SecurityGroupBackend)
def authorize_security_group_egress(original: Any, backend: Any, **named: Any) -> Any:
    rules, group = original(backend, **named)
    describe(rules, named)
    return rules, group
