variable "region" {
  description = "Region of everything."
  type        = string
}

variable "name" {
  description = "First part of all names."
  type        = string
  default     = "tapfleet-lab"
}

variable "network" {
  description = "Network of sources and sensor: CIDR, and a subnet for each zone."
  type        = object({ cidr_block = string, subnets = map(string) })
}

variable "mirror" {
  description = "What is mirrored: all, icmp (ping) or http (port 8000, where the demo sources serve a page)."
  type        = string
  default     = "all"

  validation {
    condition     = contains(["all", "icmp", "http"], var.mirror)
    error_message = "mirror must be all, icmp or http."
  }
}

variable "src_ec2_count" {
  description = "Demo sources that talk to each other."
  type        = number
  default     = 2
}

variable "sensor_instance_type" {
  description = "Type of the sensor; one of a size for which Traffic Mirroring allows ten sources (any)."
  type        = string
  default     = "t3.medium"
}

variable "s3_bucket_name" {
  description = "Bucket of captures; unique in the partition. It is deleted with its captures at the end of the lab."
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
