"""Endpoint services across accounts: moto takes any service name from anybody and never asks for acceptance.

AWS PrivateLink guide "Share your services": who is no allowed principal is told that the service does not exist; an endpoint of a
service that asks for acceptance is `pendingAcceptance` until its owner accepts it. CreateVpcEndpoint: an endpoint of a Gateway Load
Balancer has one subnet, in a zone of the service. DeleteVpcEndpointServiceConfigurations: not while it has endpoints.
"""

import hashlib
import re
from collections.abc import Iterator
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.vpc_service_configuration import VPCServiceConfiguration
from moto.ec2.models.vpcs import VPCBackend, VPCEndPoint
from moto.ec2.responses import EC2Response
from moto.ec2.utils import random_private_ip

from .corrections import answers, corrects, refuse
from .selection import select

KIND = "GatewayLoadBalancer"

# AWS PrivateLink guide "AWS services that integrate": those that the modules name. moto's own list wants all of its services loaded.
AWS_SERVICES = ("autoscaling", "ec2", "ec2messages", "kms", "logs", "monitoring", "s3", "sns", "ssm", "ssmmessages", "sts")


# The provider's side: services and who may use them.


@corrects(VPCServiceConfiguration)
def __init__(original: Any, service: Any, *arguments: Any, **named: Any) -> None:  # noqa: N807
    original(service, *arguments, **named)
    if service.gateway_load_balancer_arns:
        service._service_type_name = KIND
    service.availability_zones = sorted(set(service.availability_zones))


@answers(EC2Response)
def modify_vpc_endpoint_service_permissions(request: Any) -> dict[str, Any]:
    service = own_service(request)
    add, remove = request._get_param("AddAllowedPrincipals", []), request._get_param("RemoveAllowedPrincipals", [])
    if unknown := set(remove) - set(service.principals):
        raise refuse("InvalidParameterValue", f"{sorted(unknown)} are no allowed principals of '{service.id}'.")
    new = [principal for principal in add if principal not in service.principals]
    service.principals = [principal for principal in service.principals if principal not in remove] + new
    return {"ReturnValue": True, "AddedPrincipals": [permission(service, principal) for principal in new]}


@answers(EC2Response)
def describe_vpc_endpoint_service_permissions(request: Any) -> dict[str, Any]:
    service = own_service(request)
    return {
        "AllowedPrincipals": select(
            [permission(service, principal) for principal in service.principals], request._filters_from_querystring()
        )
    }


def permission(service: Any, principal: str) -> dict[str, Any]:
    kind = "All" if principal == "*" else "Account" if principal.endswith(":root") else "Role"
    # Stable: the same permission has the same id whenever it is asked for.
    identity = "vpce-svc-perm-" + hashlib.sha256(f"{service.id} {principal}".encode()).hexdigest()[:17]
    return {"Principal": principal, "PrincipalType": kind, "ServiceId": service.id, "ServicePermissionId": identity}


def own_service(request: Any) -> Any:
    return request.ec2_backend.describe_vpc_endpoint_service_configurations([request._get_param("ServiceId")])[0]


@corrects(EC2Response)
def delete_vpc_endpoint_service_configurations(original: Any, request: Any) -> Any:
    for identity in request._get_param("ServiceIds", []):
        users = [endpoint.id for endpoint in connections(request.region, identity)]
        if users:
            reason = {"Code": "ExistingVpcEndpointConnections", "Message": f"'{identity}' has the endpoints {', '.join(users)}"}
            return ActionResult({"Unsuccessful": [{"ResourceId": identity, "Error": reason}]})
    return original(request)


@answers(EC2Response)
def describe_vpc_endpoint_connections(request: Any) -> dict[str, Any]:
    found = [
        {
            "ServiceId": service.id,
            "VpcEndpointId": endpoint.id,
            "VpcEndpointOwner": endpoint.ec2_backend.account_id,
            "VpcEndpointState": endpoint.state,
            "CreationTimestamp": endpoint.creation_timestamp,
            "GatewayLoadBalancerArns": service.gateway_load_balancer_arns,
        }
        for service in request.ec2_backend.configurations.values()
        for endpoint in connections(request.region, service.id)
    ]
    return {"VpcEndpointConnections": select(found, request._filters_from_querystring())}


@answers(EC2Response)
def accept_vpc_endpoint_connections(request: Any) -> dict[str, Any]:
    return decide(request, "available")


@answers(EC2Response)
def reject_vpc_endpoint_connections(request: Any) -> dict[str, Any]:
    return decide(request, "rejected")


def decide(request: Any, state: str) -> dict[str, Any]:
    waiting = {endpoint.id: endpoint for endpoint in connections(request.region, own_service(request).id)}
    failed = []
    for identity in request._get_param("VpcEndpointIds", []):
        if identity in waiting and waiting[identity].state == "pendingAcceptance":
            waiting[identity].state = state
        else:
            error = {"Code": "InvalidVpcEndpointId.NotFound", "Message": f"'{identity}' does not wait for acceptance"}
            failed.append({"ResourceId": identity, "Error": error})
    return {"Unsuccessful": failed}


def connections(region: str, service: str) -> Iterator[VPCEndPoint]:
    """The endpoints of a service, whoever has them."""
    for backends in ec2_backends.values():
        if region in backends:
            for endpoint in backends[region].vpc_end_points.values():
                if endpoint.service_name.endswith(f".{service}") and endpoint.state not in ("deleted", "rejected"):
                    yield endpoint


# The consumer's side: endpoints.


@corrects(VPCBackend)
def create_vpc_endpoint(original: Any, backend: Any, **named: Any) -> Any:
    if named["endpoint_type"] != KIND:
        known_to_aws(backend, named["service_name"])
        return original(backend, **named)
    service = find_service(backend, named["service_name"])
    subnets = [backend.get_subnet(subnet) for subnet in named["subnet_ids"]]
    if len(subnets) != 1:
        raise refuse("InvalidParameter", f"An endpoint of type {KIND} has one subnet, not {len(subnets)}.")
    if subnets[0].vpc_id != named["vpc_id"]:
        raise refuse("InvalidParameter", f"The subnet '{subnets[0].id}' is not of '{named['vpc_id']}'.")
    if subnets[0].availability_zone not in service.availability_zones:
        message = f"The VPC endpoint service {service.service_name} does not support the availability zone of the subnet: {subnets[0].id}."
        raise refuse("InvalidParameter", message)
    endpoint = original(backend, **named)
    endpoint.state = "pendingAcceptance" if str(service.acceptance_required).lower() == "true" else "available"
    interface = backend.create_network_interface(subnets[0], random_private_ip())
    endpoint.network_interface_ids = [interface.id]
    return endpoint


@corrects(VPCBackend)
def delete_vpc_endpoints(original: Any, backend: Any, vpce_ids: list[str] | None = None) -> None:
    for endpoint in [backend.get_vpc_end_point(identity) for identity in vpce_ids or []]:
        if endpoint.vpc_endpoint_type == KIND:
            for interface in endpoint.network_interface_ids:
                backend.enis.pop(interface, None)
        else:
            original(backend, [endpoint.id])
        # moto keeps it as `deleted` for ever; AWS says InvalidVpcEndpointId.NotFound soon.
        del backend.vpc_end_points[endpoint.id]
        backend.tags.pop(endpoint.id, None)


def find_service(backend: Any, name: str) -> Any:
    """The service of that name, if this account may use it."""
    account = backend.account_id
    for owner, backends in ec2_backends.items():
        services = backends[backend.region_name].configurations.values() if backend.region_name in backends else ()
        for service in services:
            allowed = any(principal == "*" or principal.split(":")[4:5] == [account] for principal in service.principals)
            if service.service_name == name and (allowed or owner == account):
                return service
    raise refuse("InvalidServiceName", f"The Vpc Endpoint Service '{name}' does not exist")


def known_to_aws(backend: Any, name: str) -> None:
    if ".vpce-svc-" in name:
        find_service(backend, name)
    elif not re.fullmatch(rf"(cn\.)?com\.amazonaws\.{backend.region_name}\.({'|'.join(AWS_SERVICES)})(-fips)?", name):
        raise refuse("InvalidServiceName", f"The Vpc Endpoint Service '{name}' does not exist")
