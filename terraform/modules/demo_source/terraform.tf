terraform {
  required_version = ">= 1.11"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.100, < 7.0"
    }
  }
}

locals {
  # What the deploy policy `demo-sources` may end bears this tag.
  _tags = merge(var.tags, { "tapfleet:demo" = var.name })
}
