variable "region" {
  description = "Region of hub and spokes: endpoints do not reach across."
  type        = string
}

variable "partition" {
  description = "Partition of the accounts: aws, aws-us-gov or aws-cn."
  type        = string
  default     = "aws"

  validation {
    condition     = contains(["aws", "aws-us-gov", "aws-cn"], var.partition)
    error_message = "partition must be aws, aws-us-gov or aws-cn."
  }
}

variable "hub_account_id" {
  description = "Account of the hub."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.hub_account_id))
    error_message = "hub_account_id must be 12 digits."
  }
}

variable "spoke_account_1_id" {
  description = "First spoke account."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.spoke_account_1_id))
    error_message = "spoke_account_1_id must be 12 digits."
  }
}

variable "spoke_account_2_id" {
  description = "Second spoke account."
  type        = string

  validation {
    condition     = can(regex("^[0-9]{12}$", var.spoke_account_2_id))
    error_message = "spoke_account_2_id must be 12 digits."
  }
}

variable "spoke_accounts" {
  description = "Further spoke accounts, with roots of their own: a name of yours to the account id."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for account in values(var.spoke_accounts) : can(regex("^[0-9]{12}$", account))])
    error_message = "spoke_accounts must map names to account ids of 12 digits."
  }
}

variable "terraform_deployment_role" {
  description = "Name of the role in each account which Terraform assumes."
  type        = string

  validation {
    condition     = can(regex("^([!-.0-~]+/)*[A-Za-z0-9+=,.@_-]{1,64}$", var.terraform_deployment_role)) && !can(regex(":", var.terraform_deployment_role))
    error_message = "A role is named here by its path, if any, and name, not by its ARN: 1 to 64 letters, digits and any of + = , . @ _ -, such as deploy-tapfleet."
  }
}

variable "vpc_data_map" {
  description = "Networks: hub, spoke_1 and spoke_2, each with a name, a CIDR and a private subnet for each zone."
  type = object({
    hub     = object({ cidr = string, private_subnets = map(string) })
    spoke_1 = object({ name = string, cidr = string, private_subnets = map(string) })
    spoke_2 = object({ name = string, cidr = string, private_subnets = map(string) })
  })
}

variable "name" {
  description = "First part of all names."
  type        = string
  default     = "tapfleet"
}

variable "s3_bucket_name" {
  description = "Bucket of captures; unique in the partition."
  type        = string
}

variable "key_prefix" {
  description = "Before <instance-id>/ in capture keys; packet-captures/ is the AWS sample's layout."
  type        = string
  default     = ""
}

variable "sns_notify_email" {
  description = "Address that hears of troubles; it must confirm a mail from AWS."
  type        = string
}

variable "agent_ami_id" {
  description = "Image with the agent, in the hub account."
  type        = string
}

variable "allowed_principals" {
  description = "Who may make endpoints beside the spoke accounts: ARNs."
  type        = list(string)
  default     = []
}

variable "enable_manual_acceptance" {
  description = "Each endpoint waits for somebody in the hub account to accept it; then apply twice, with the acceptance between."
  type        = bool
  default     = false
}

variable "cross_zone_load_balancing_enabled" {
  description = "Agents of every zone take packets of every zone."
  type        = bool
  default     = true
}

variable "deletion_protection_enabled" {
  description = "The load balancer cannot be deleted while it is true, nor can the hub be destroyed."
  type        = bool
  default     = false
}

variable "traffic_mirror_agent_instance_type" {
  description = "Type of the agents."
  type        = string
  default     = "c6in.xlarge"
}

variable "traffic_mirror_asg_min_size" {
  description = "Least number of agents."
  type        = number
  default     = 1
}

variable "traffic_mirror_asg_max_size" {
  description = "Greatest number of agents."
  type        = number
  default     = 4
}

variable "expected_gbps" {
  description = "Mirrored traffic that one agent takes at its peak, in Gb/s."
  type        = number
  default     = 1
}

variable "src_ec2_count" {
  description = "Demo sources in each spoke; 0: none."
  type        = number
  default     = 0
}

variable "settings" {
  description = "Further settings of the agent, as in agent/tapfleet.example.toml."
  type        = any
  default     = {}
}

variable "permissions_boundary_arn" {
  description = "Policy of the hub account that bounds every role made there; null: none."
  type        = string
  default     = null
}

variable "default_tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = { project = "packet-captures-s3" }
}
