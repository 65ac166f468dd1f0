"""Amazon Linux's public parameters in every region: moto has them of the commercial ones alone.

Systems Manager User Guide "Calling AMI public parameters": `/aws/service/ami-amazon-linux-latest/…` is there in GovCloud, too. The names
are another region's, the image is any of this one's: no instance here boots from it.
"""

from typing import Any

from moto.ec2.models import ec2_backends
from moto.ssm.models import ParameterDict

from .corrections import corrects

REGION_WITH_IMAGES = "eu-central-1"


@corrects(ParameterDict)
def _load_latest_amis(original: Any, parameters: Any) -> None:
    region = parameters.region_name
    if not region.startswith(("us-gov-", "cn-")):
        return original(parameters)
    parameters.region_name = REGION_WITH_IMAGES
    try:
        original(parameters)
    finally:
        parameters.region_name = region
    image = ec2_backends[parameters.account_id][region].describe_images()[0]
    for versions in parameters.values():
        for parameter in versions:
            parameter.value = image.id
    return None
