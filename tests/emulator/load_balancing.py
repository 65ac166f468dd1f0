"""Elastic Load Balancing where moto says `app` of every balancer and lets one go that is in use.

Service Authorization Reference "Elastic Load Balancing V2": ARNs are `loadbalancer/{app,net,gwy}/…`. API Reference
DeleteLoadBalancer: ResourceInUse while an endpoint service has it, OperationNotPermitted while deletion protection is on.
"""

from typing import Any

from moto.ec2.models import ec2_backends
from moto.elbv2 import models
from moto.elbv2.models import ELBv2Backend

from .corrections import corrects, refuse

KINDS = {"application": "app", "network": "net", "gateway": "gwy"}

_arn_of_application = models.make_arn_for_load_balancer


@corrects(ELBv2Backend)
def create_load_balancer(original: Any, backend: ELBv2Backend, *arguments: Any, **named: Any) -> Any:
    kind = KINDS[named.get("loadbalancer_type") or "application"]

    def arn(**parts: str) -> str:
        return _arn_of_application(**parts).replace(":loadbalancer/app/", f":loadbalancer/{kind}/")

    # One request at a time: the door holds its lock.
    models.make_arn_for_load_balancer = arn
    try:
        return original(backend, *arguments, **named)
    finally:
        models.make_arn_for_load_balancer = _arn_of_application


@corrects(ELBv2Backend)
def delete_load_balancer(original: Any, backend: ELBv2Backend, arn: str) -> None:
    services = ec2_backends[backend.account_id][backend.region_name].configurations.values()
    for service in services:
        if arn in service.gateway_load_balancer_arns + service.network_load_balancer_arns:
            raise refuse("ResourceInUse", f"Load balancer '{arn}' cannot be deleted because it is in use by {service.id}")
    balancer = backend.load_balancers.get(arn)
    if balancer is not None and balancer.attrs.get("deletion_protection.enabled") == "true":
        raise refuse("OperationNotPermitted", f"Load balancer '{arn}' cannot be deleted because deletion protection is enabled")
    original(backend, arn)
