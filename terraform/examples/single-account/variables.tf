variable "region" {
  description = "Region of everything."
  type        = string
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

variable "sns_notify_email" {
  description = "Address that hears of troubles; it must confirm a mail from AWS."
  type        = string
}

variable "agent_ami_id" {
  description = "Image with the agent."
  type        = string
}

variable "hub_network" {
  description = "Network of the fleet: CIDR, and a subnet for each zone."
  type        = object({ cidr_block = string, subnets = map(string) })
}

variable "source_network" {
  description = "Network of the mirrored sources: CIDR, and a subnet for each zone."
  type        = object({ cidr_block = string, subnets = map(string) })
}

variable "src_ec2_count" {
  description = "Demo sources that talk to each other."
  type        = number
  default     = 2
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

variable "settings" {
  description = "Further settings of the agent, as in agent/tapfleet.example.toml."
  type        = any
  default     = {}
}

variable "default_tags" {
  description = "Tags of everything."
  type        = map(string)
  default     = { project = "packet-captures-s3" }
}
