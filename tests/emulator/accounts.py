"""Whose call it is.

- An access key of twelve digits is the account of that number: tests need no user in it.
- AssumeRole: the role must exist, as STS demands (moto takes any ARN). Its keys lead to the role's account.
- Any other key is refused (moto takes it for its default account).
"""

import re
from typing import Any

from moto.iam.models import iam_backends
from moto.sts.responses import TokenResponse
from moto.utilities.utils import PARTITION_NAMES

from .corrections import corrects, refuse


def account_of(access_key: str) -> str:
    """The account whose credentials these are."""
    if re.fullmatch(r"\d{12}", access_key):
        return access_key
    for account, partitions in list(iam_backends.items()):
        if any(access_key in partitions[name].access_keys for name in PARTITION_NAMES if name in partitions):
            return account
    raise refuse("InvalidClientTokenId", "The security token included in the request is invalid.")


@corrects(TokenResponse)
def assume_role(original: Any, request: Any) -> Any:
    arn = request._get_param("RoleArn")
    _, partition, _, _, account, _ = arn.split(":", 5)
    roles = iam_backends[account][partition].roles.values()
    if not any(role.arn == arn for role in roles):
        caller = f"arn:{partition}:iam::{request.current_account}:root"
        raise refuse("AccessDenied", f"User: {caller} is not authorized to perform: sts:AssumeRole on resource: {arn}")
    return original(request)
