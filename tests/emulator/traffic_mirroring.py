"""Traffic Mirroring, whole: moto's lacks rules, deletions and every check, and its ids are not AWS's.

EC2 API Reference: the actions named here. Traffic Mirroring guide "Quotas": ten rules a filter, three sessions an interface; "Sessions":
numbers 1 to 32766, one session of each number on an interface, VNI 0 to 16777215; ModifyTrafficMirrorSession: packet length 1 to 8500
with a network load balancer. A filter or target that a session uses is not deleted. Codes of errors: those the Terraform provider
waits for, and those of EC2's list of error codes; nobody documents the code of a session number that is taken.
"""

import ipaddress
from typing import Any

from moto.ec2 import utils as ec2_utils
from moto.ec2.responses import EC2Response

from .corrections import answers, refuse
from .selection import select

RULES_PER_FILTER = 10
SESSIONS_PER_INTERFACE = 3
SESSION_NUMBERS = range(1, 32767)
NETWORK_IDS = range(1 << 24)
# VPC MTU less the headers of VXLAN over IPv4, and what a load balancer's endpoint takes.
PACKET_LENGTHS = {
    "network-interface": range(1, 8948),
    "network-load-balancer": range(1, 8501),
    "gateway-load-balancer-endpoint": range(1, 8501),
}

PREFIXES = {
    "traffic-mirror-filter": "tmf",
    "traffic-mirror-filter-rule": "tmfr",
    "traffic-mirror-session": "tms",
    "traffic-mirror-target": "tmt",
}
for _resource, _prefix in PREFIXES.items():
    ec2_utils.EC2_PREFIX_TO_RESOURCE.pop(ec2_utils.EC2_RESOURCE_TO_PREFIX.get(_resource, ""), None)
    ec2_utils.EC2_RESOURCE_TO_PREFIX[_resource] = _prefix
    ec2_utils.EC2_PREFIX_TO_RESOURCE[_prefix] = _resource

Record = dict[str, Any]


class Kind:
    """One of the four kinds of things, by the word that AWS's names of it have."""

    def __init__(self, word: str, resource: str, shelf: str) -> None:
        self.word, self.resource, self.shelf = word, resource, shelf
        self.id = f"TrafficMirror{word}Id"

    def all(self, backend: Any) -> dict[str, Record]:
        """Those of an account and region, by id. moto's own shelves, but the one it lacks."""
        if not hasattr(backend, self.shelf):
            setattr(backend, self.shelf, {})
        return getattr(backend, self.shelf)

    def get(self, backend: Any, identity: str) -> Record:
        try:
            return self.all(backend)[identity]
        except KeyError:
            message = f"The traffic mirror {self.word.lower()} ID '{identity}' does not exist"
            raise refuse(f"InvalidTrafficMirror{self.word}Id.NotFound", message) from None

    def add(self, request: Any, record: Record) -> Record:
        identity = ec2_utils.random_id(prefix=PREFIXES[self.resource])
        record = {self.id: identity} | {name: value for name, value in record.items() if value is not None}
        tags = request._parse_tag_specification(self.resource).get(self.resource, {})
        self.all(request.ec2_backend)[identity] = record
        request.ec2_backend.create_tags([identity], tags)
        return record

    def shown(self, backend: Any, record: Record) -> Record:
        tags = [{"Key": key, "Value": value} for key, value in backend.tags.get(record[self.id], {}).items()]
        return record | {"Tags": tags}

    def describe(self, request: Any, records: dict[str, Record]) -> list[Record]:
        for identity in (wanted := request._get_param(f"{self.id}s", [])):
            self.get(request.ec2_backend, identity)
        chosen = [record for identity, record in records.items() if not wanted or identity in wanted]
        return select([self.shown(request.ec2_backend, record) for record in chosen], request._filters_from_querystring())

    def delete(self, request: Any) -> Record:
        backend, identity = request.ec2_backend, request._get_param(self.id)
        self.get(backend, identity)
        del self.all(backend)[identity]
        backend.tags.pop(identity, None)
        return {self.id: identity}


FILTERS = Kind("Filter", "traffic-mirror-filter", "traffic_mirror_filters")
RULES = Kind("FilterRule", "traffic-mirror-filter-rule", "traffic_mirror_filter_rules")
TARGETS = Kind("Target", "traffic-mirror-target", "traffic_mirror_targets")
SESSIONS = Kind("Session", "traffic-mirror-session", "traffic_mirror_sessions")


def parameters(request: Any, *names: str) -> Record:
    return {name: value for name in names if (value := request._get_param(name)) is not None}


def remove_fields(record: Record, request: Any, kind: str) -> None:
    """RemoveFields names fields in kebab case; the field is then as if it had never been given."""
    for field in request._get_param("RemoveFields", []):
        name = "".join(part.capitalize() for part in field.split("-"))
        if name not in ("DestinationPortRange", "SourcePortRange", "Protocol", "Description", "PacketLength", "VirtualNetworkId"):
            raise refuse("InvalidParameterValue", f"'{field}' is not a field of a {kind} that can be removed.")
        record.pop(name, None)


# Filters and their rules.


def with_rules(backend: Any, record: Record) -> Record:
    rules = [rule for rule in RULES.all(backend).values() if rule[FILTERS.id] == record[FILTERS.id]]
    rules.sort(key=lambda rule: rule["RuleNumber"])
    directions = {
        f"{word}FilterRules": [RULES.shown(backend, rule) for rule in rules if rule["TrafficDirection"] == word.lower()]
        for word in ("Ingress", "Egress")
    }
    return FILTERS.shown(backend, record) | directions


@answers(EC2Response)
def create_traffic_mirror_filter(request: Any) -> Record:
    record = FILTERS.add(request, {"Description": request._get_param("Description"), "NetworkServices": []})
    return {"TrafficMirrorFilter": with_rules(request.ec2_backend, record)}


@answers(EC2Response)
def describe_traffic_mirror_filters(request: Any) -> Record:
    chosen = FILTERS.describe(request, FILTERS.all(request.ec2_backend))
    return {"TrafficMirrorFilters": [with_rules(request.ec2_backend, record) for record in chosen]}


@answers(EC2Response)
def modify_traffic_mirror_filter_network_services(request: Any) -> Record:
    record = FILTERS.get(request.ec2_backend, request._get_param(FILTERS.id))
    add, remove = request._get_param("AddNetworkServices", []), request._get_param("RemoveNetworkServices", [])
    if unknown := set(add + remove) - {"amazon-dns"}:
        raise refuse("InvalidParameterValue", f"Traffic Mirroring knows no network service {sorted(unknown)}.")
    kept = [service for service in record["NetworkServices"] if service not in remove]
    record["NetworkServices"] = kept + [service for service in add if service not in kept]
    return {"TrafficMirrorFilter": with_rules(request.ec2_backend, record)}


@answers(EC2Response)
def delete_traffic_mirror_filter(request: Any) -> Record:
    backend, identity = request.ec2_backend, request._get_param(FILTERS.id)
    refuse_if_used(backend, FILTERS, identity, "TrafficMirrorFilterInUse")
    answer = FILTERS.delete(request)
    for rule in [rule for rule, record in RULES.all(backend).items() if record[FILTERS.id] == identity]:
        del RULES.all(backend)[rule]
    return answer


RULE_FIELDS = (
    *("TrafficDirection", "RuleNumber", "RuleAction", "Protocol", "Description"),
    *("DestinationPortRange", "SourcePortRange", "DestinationCidrBlock", "SourceCidrBlock"),
)


@answers(EC2Response)
def create_traffic_mirror_filter_rule(request: Any) -> Record:
    backend = request.ec2_backend
    owner = FILTERS.get(backend, request._get_param(FILTERS.id))[FILTERS.id]
    rule = parameters(request, *RULE_FIELDS) | {FILTERS.id: owner}
    if sum(other[FILTERS.id] == owner for other in RULES.all(backend).values()) >= RULES_PER_FILTER:
        raise refuse("TrafficMirrorFilterRuleLimitExceeded", f"The filter '{owner}' has {RULES_PER_FILTER} rules already.")
    check_rule(backend, rule)
    return {"TrafficMirrorFilterRule": RULES.shown(backend, RULES.add(request, rule))}


@answers(EC2Response)
def modify_traffic_mirror_filter_rule(request: Any) -> Record:
    record = RULES.get(request.ec2_backend, request._get_param(RULES.id))
    changed = record | parameters(request, *RULE_FIELDS)
    remove_fields(changed, request, "rule")
    check_rule(request.ec2_backend, changed)
    record.clear()
    record.update(changed)
    return {"TrafficMirrorFilterRule": RULES.shown(request.ec2_backend, record)}


@answers(EC2Response)
def describe_traffic_mirror_filter_rules(request: Any) -> Record:
    owner = request._get_param(FILTERS.id)
    rules = {identity: rule for identity, rule in RULES.all(request.ec2_backend).items() if owner in (None, rule[FILTERS.id])}
    return {"TrafficMirrorFilterRules": RULES.describe(request, rules)}


@answers(EC2Response)
def delete_traffic_mirror_filter_rule(request: Any) -> Record:
    return RULES.delete(request)


def check_rule(backend: Any, rule: Record) -> None:
    if rule["TrafficDirection"] not in ("ingress", "egress") or rule["RuleAction"] not in ("accept", "reject"):
        raise refuse("InvalidParameterValue", "A rule is of ingress or egress and accepts or rejects.")
    networks = [ipaddress.ip_network(rule[name]) for name in ("SourceCidrBlock", "DestinationCidrBlock")]
    if networks[0].version != networks[1].version:
        raise refuse("InvalidParameterValue", "Source and destination must both be IPv4 or both IPv6.")
    for name in ("SourcePortRange", "DestinationPortRange"):
        ports = rule.get(name)
        if ports and not (rule.get("Protocol") in (6, 17) and 0 <= ports["FromPort"] <= ports["ToPort"] <= 65535):
            raise refuse("InvalidParameterValue", f"{name} needs TCP or UDP, and two ports in their order.")
    same = (FILTERS.id, "TrafficDirection", "RuleNumber")
    for other in RULES.all(backend).values():
        if other.get(RULES.id) != rule.get(RULES.id) and all(other[name] == rule[name] for name in same):
            raise refuse("TrafficMirrorFilterRuleAlreadyExists", f"Rule {rule['RuleNumber']} of that direction exists.")


# Targets.


@answers(EC2Response)
def create_traffic_mirror_target(request: Any) -> Record:
    backend = request.ec2_backend
    checks = {
        "NetworkInterfaceId": ("network-interface", backend.get_network_interface),
        "NetworkLoadBalancerArn": ("network-load-balancer", lambda arn: check_balancer(backend, arn)),
        "GatewayLoadBalancerEndpointId": ("gateway-load-balancer-endpoint", lambda endpoint: check_endpoint(backend, endpoint)),
    }
    given = parameters(request, *checks)
    if len(given) != 1:
        raise refuse("InvalidParameterCombination", f"Exactly one of {', '.join(checks)} is needed, not {len(given)}.")
    [(name, value)] = given.items()
    kind, check = checks[name]
    check(value)
    if any(target.get(name) == value for target in TARGETS.all(backend).values()):
        raise refuse("TrafficMirrorTargetAlreadyExists", f"'{value}' is a traffic mirror target already.")
    record = given | parameters(request, "Description") | {"Type": kind, "OwnerId": request.current_account}
    return {"TrafficMirrorTarget": TARGETS.shown(backend, TARGETS.add(request, record))}


@answers(EC2Response)
def describe_traffic_mirror_targets(request: Any) -> Record:
    return {"TrafficMirrorTargets": TARGETS.describe(request, TARGETS.all(request.ec2_backend))}


@answers(EC2Response)
def delete_traffic_mirror_target(request: Any) -> Record:
    refuse_if_used(request.ec2_backend, TARGETS, request._get_param(TARGETS.id), "TrafficMirrorTargetInUseException")
    return TARGETS.delete(request)


def check_balancer(backend: Any, arn: str) -> None:
    from moto.elbv2.models import elbv2_backends

    balancer = elbv2_backends[backend.account_id][backend.region_name].load_balancers.get(arn)
    if balancer is None or balancer.type != "network":
        raise refuse("InvalidParameterValue", f"'{arn}' is not a network load balancer of this account.")


def check_endpoint(backend: Any, identity: str) -> None:
    endpoint = backend.get_vpc_end_point(identity)
    if endpoint.vpc_endpoint_type != "GatewayLoadBalancer":
        raise refuse("InvalidParameterValue", f"'{identity}' is not an endpoint of a Gateway Load Balancer.")
    # Whether AWS takes one that waits for its acceptance nobody says: the harder of the two for who applies.
    if endpoint.state != "available":
        raise refuse("InvalidParameterValue", f"'{identity}' is {endpoint.state}, not available.")


# Sessions.

SESSION_FIELDS = (TARGETS.id, FILTERS.id, "SessionNumber", "PacketLength", "VirtualNetworkId", "Description")


@answers(EC2Response)
def create_traffic_mirror_session(request: Any) -> Record:
    backend = request.ec2_backend
    record = parameters(request, "NetworkInterfaceId", *SESSION_FIELDS) | {"OwnerId": request.current_account}
    # Chosen at random when it is not given (CreateTrafficMirrorSession).
    record.setdefault("VirtualNetworkId", int(ec2_utils.random_resource_id(6), 16))
    check_session(backend, record)
    return {"TrafficMirrorSession": SESSIONS.shown(backend, SESSIONS.add(request, record))}


@answers(EC2Response)
def modify_traffic_mirror_session(request: Any) -> Record:
    backend = request.ec2_backend
    record = SESSIONS.get(backend, request._get_param(SESSIONS.id))
    changed = record | parameters(request, *SESSION_FIELDS)
    remove_fields(changed, request, "session")
    changed.setdefault("VirtualNetworkId", int(ec2_utils.random_resource_id(6), 16))
    check_session(backend, changed)
    record.clear()
    record.update(changed)
    return {"TrafficMirrorSession": SESSIONS.shown(backend, record)}


@answers(EC2Response)
def describe_traffic_mirror_sessions(request: Any) -> Record:
    return {"TrafficMirrorSessions": SESSIONS.describe(request, SESSIONS.all(request.ec2_backend))}


@answers(EC2Response)
def delete_traffic_mirror_session(request: Any) -> Record:
    return SESSIONS.delete(request)


def check_session(backend: Any, session: Record) -> None:
    interface = session["NetworkInterfaceId"]
    backend.get_network_interface(interface)
    FILTERS.get(backend, session[FILTERS.id])
    lengths = PACKET_LENGTHS[TARGETS.get(backend, session[TARGETS.id])["Type"]]
    for name, allowed in (("SessionNumber", SESSION_NUMBERS), ("VirtualNetworkId", NETWORK_IDS), ("PacketLength", lengths)):
        if name in session and session[name] not in allowed:
            raise refuse("InvalidParameterValue", f"{name} must be from {allowed.start} to {allowed.stop - 1}, not {session[name]}.")
    others = [
        other
        for other in SESSIONS.all(backend).values()
        if other["NetworkInterfaceId"] == interface and other.get(SESSIONS.id) != session.get(SESSIONS.id)
    ]
    if any(other["SessionNumber"] == session["SessionNumber"] for other in others):
        raise refuse("InvalidParameterValue", f"'{interface}' has a session of number {session['SessionNumber']} already.")
    if len(others) >= SESSIONS_PER_INTERFACE:
        message = f"'{interface}' is the source of {SESSIONS_PER_INTERFACE} sessions already."
        raise refuse("TrafficMirrorSessionsPerInterfaceLimitExceeded", message)


def refuse_if_used(backend: Any, kind: Kind, identity: str, code: str) -> None:
    users = [name for name, session in SESSIONS.all(backend).items() if session[kind.id] == identity]
    if users:
        raise refuse(code, f"'{identity}' is in use by {', '.join(users)}.")
