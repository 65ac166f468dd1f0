variable "region" {
  description = "Region of everything."
  type        = string
}

variable "name" {
  description = "First part of all names."
  type        = string
  default     = "tapfleet"
}

variable "vpc_id" {
  description = "The VPC of fleet and sources."
  type        = string
}

variable "subnet_ids" {
  description = "Private subnets of the fleet, by zone name."
  type        = map(string)
}

variable "route_table_ids" {
  description = "Route tables of these subnets; they get the gateway endpoint of S3."
  type        = list(string)
}

variable "create_endpoints" {
  description = "Make the VPC endpoints; false where the VPC has them, in the same subnets."
  type        = bool
  default     = true
}

variable "sessions" {
  description = "What is mirrored: see the spoke module."
  type        = map(object({ network_interface_id = string, zone = string, session_number = optional(number, 1) }))
  default     = {}
}

variable "s3_bucket_name" {
  description = "Bucket of captures; unique in the partition."
  type        = string
}

variable "sns_notify_email" {
  description = "Address that hears of troubles; it must confirm a mail from AWS."
  type        = string
}

variable "agent_ami_id" {
  description = "Image with the agent."
  type        = string
}

variable "default_tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = { project = "packet-captures-s3" }
}
