variable "region" {
  description = "Region of the hub: endpoints do not reach across."
  type        = string
}

variable "partition" {
  description = "Partition of the account: aws, aws-us-gov or aws-cn."
  type        = string
  default     = "aws"

  validation {
    condition     = contains(["aws", "aws-us-gov", "aws-cn"], var.partition)
    error_message = "partition must be aws, aws-us-gov or aws-cn."
  }
}

variable "account_id" {
  description = "The spoke account."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.account_id))
    error_message = "account_id must be 12 digits."
  }
}

variable "terraform_deployment_role" {
  description = "Name of the role in that account which Terraform assumes."
  type        = string

  validation {
    condition     = can(regex("^([!-.0-~]+/)*[A-Za-z0-9+=,.@_-]{1,64}$", var.terraform_deployment_role)) && !can(regex(":", var.terraform_deployment_role))
    error_message = "A role is named here by its path, if any, and name, not by its ARN: 1 to 64 letters, digits and any of + = , . @ _ -, such as deploy-tapfleet."
  }
}

variable "name" {
  description = "First part of all names."
  type        = string
  default     = "tapfleet"
}

variable "gwlb_endpoint_service_name" {
  description = "Output of the hub."
  type        = string
}

variable "alarm_topic_arn" {
  description = "Output topic_arn of the hub; null: no alarms."
  type        = string
  default     = null
}

variable "vpc_id" {
  description = "VPC of the sources."
  type        = string
}

variable "subnet_ids" {
  description = "A subnet for the endpoint of each zone, by zone name."
  type        = map(string)
}

variable "filter" {
  description = "What is mirrored: see the spoke module; everything by default."
  type        = any
  default     = {}
}

variable "sessions" {
  description = "Interfaces that are mirrored: see the spoke module."
  type        = any
  default     = {}
}

variable "default_tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = { project = "packet-captures-s3" }
}
