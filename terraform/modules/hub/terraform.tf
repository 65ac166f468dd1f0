terraform {
  # 1.11: validations may refer to other variables, and the tests use what 1.11 can override.
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
data "aws_region" "current" {}

data "aws_availability_zones" "usable" {
  #checkov:skip=CKV_AWS_394: only checks names that the user gave; new zones change nothing
  state = "available"
}

locals {
  _account = data.aws_caller_identity.current.account_id
  # `id` is the region's name in 5.x and 6.x of the provider alike; `name` is deprecated in one, `region` missing in the other.
  _region    = data.aws_region.current.id
  _partition = data.aws_partition.current.partition
  _suffix    = data.aws_partition.current.dns_suffix
  _tags      = merge(var.tags, { "tapfleet:hub" = var.name })
}
