variable "name" {
  description = "First part of the name of everything the module makes."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{0,30}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 32 lower-case letters, digits and hyphens."
  }
}

variable "cidr_block" {
  description = "Network of the VPC."
  type        = string

  validation {
    condition     = can(cidrnetmask(var.cidr_block)) && try(cidrsubnet(var.cidr_block, 0, 0) == var.cidr_block && split("/", var.cidr_block)[1] >= 16 && split("/", var.cidr_block)[1] <= 28, false)
    error_message = "cidr_block must be an IPv4 CIDR block from /16 to /28 with no address bits beyond the prefix, as 10.1.0.0/24."
  }
}

variable "subnets" {
  description = "Private subnets: zone name to CIDR."
  type        = map(string)

  validation {
    condition     = length(var.subnets) > 0 && alltrue([for cidr in values(var.subnets) : can(cidrnetmask(cidr))])
    error_message = "subnets must name at least one zone and its IPv4 CIDR block."
  }

  validation {
    condition = try(alltrue([
      for cidr in values(var.subnets) :
      split("/", cidr)[1] >= split("/", var.cidr_block)[1] && split("/", cidr)[1] <= 28 &&
      cidrsubnet("${split("/", cidr)[0]}/${split("/", var.cidr_block)[1]}", 0, 0) == var.cidr_block
    ]), false)
    error_message = "subnets must lie within cidr_block and be /28 or larger."
  }
}

variable "src_ec2_count" {
  description = "Instances that ping each other and ask each other for a page, each second; spread over the subnets."
  type        = number
  default     = 0

  validation {
    condition     = var.src_ec2_count >= 0 && var.src_ec2_count <= 10 && floor(var.src_ec2_count) == var.src_ec2_count
    error_message = "src_ec2_count must be a whole number from 0 to 10."
  }
}

variable "instance_type" {
  description = "Type of the instances; one that Traffic Mirroring takes as a source (not t2, not bare metal)."
  type        = string
  default     = "t3.micro"

  validation {
    condition     = !startswith(var.instance_type, "t2.") && !endswith(var.instance_type, ".metal")
    error_message = "instance_type must be one that Traffic Mirroring takes as a source: not t2, not bare metal."
  }
}

variable "tags" {
  description = "Tags of everything the module makes."
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for key in keys(var.tags) : !startswith(key, "tapfleet:") && !startswith(lower(key), "aws:")])
    error_message = "Keys of tags must not begin with tapfleet: or aws:."
  }
}
