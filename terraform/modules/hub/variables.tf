variable "name" {
  description = "First part of the name of everything the module makes; two hubs in one account and region need two names."
  type        = string
  default     = "tapfleet"

  validation {
    # The longest name that is made of it is the load balancer's, of at most 32 characters.
    condition     = can(regex("^[a-z][a-z0-9-]{0,22}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 24 lower-case letters, digits and hyphens, must begin with a letter and not end with a hyphen."
  }
}

variable "network" {
  description = <<-EOT
    Where the fleet lives. For a new VPC: `cidr_block` and `subnets`, zone name to CIDR, one private subnet each; there is no
    internet gateway. For an existing one: `existing`, with `subnet_ids` from zone name to subnet and the route tables that get
    the gateway endpoint of S3. A zone cannot be taken away from the load balancer later. `direct_sources`: networks that
    may send VXLAN straight to an agent, without the load balancer.
  EOT
  type = object({
    cidr_block = optional(string)
    subnets    = optional(map(string), {})
    existing = optional(object({
      vpc_id          = string
      subnet_ids      = map(string)
      route_table_ids = list(string)
    }))
    direct_sources = optional(list(string), [])
  })

  validation {
    condition     = (var.network.cidr_block == null) != (var.network.existing == null)
    error_message = "network needs either cidr_block with subnets, for a new VPC, or existing; not both."
  }

  validation {
    condition     = var.network.existing != null || length(var.network.subnets) > 0
    error_message = "network.subnets must name at least one zone and its CIDR, as in { \"eu-central-1a\" = \"10.0.0.0/26\" }."
  }

  validation {
    condition = var.network.existing == null || try(
      can(regex("^vpc-[0-9a-f]{8,17}$", var.network.existing.vpc_id)) && length(var.network.existing.subnet_ids) > 0 &&
      alltrue([for subnet in values(var.network.existing.subnet_ids) : can(regex("^subnet-[0-9a-f]{8,17}$", subnet))]) &&
      alltrue([for table in var.network.existing.route_table_ids : can(regex("^rtb-[0-9a-f]{8,17}$", table))]), false
    )
    error_message = "network.existing needs ids: vpc_id as vpc-0123456789abcdef0, at least one zone with its subnet-0123456789abcdef0, route tables as rtb-0123456789abcdef0."
  }

  validation {
    condition     = var.network.existing == null || !var.endpoints.create || try(length(var.network.existing.route_table_ids) > 0, false)
    error_message = "network.existing.route_table_ids must name the subnets' route tables: without one no agent reaches S3 by the gateway endpoint. (None is needed where endpoints.create is false.)"
  }

  validation {
    condition     = var.network.cidr_block == null || try(split("/", var.network.cidr_block)[1] >= 16 && split("/", var.network.cidr_block)[1] <= 28, false)
    error_message = "network.cidr_block must be from /16 to /28, as AWS demands of a VPC."
  }

  validation {
    condition = alltrue([
      for cidr in concat(values(var.network.subnets), var.network.direct_sources, var.network.cidr_block == null ? [] : [var.network.cidr_block]) :
      can(cidrnetmask(cidr)) && try(cidrsubnet(cidr, 0, 0) == cidr, false)
    ])
    error_message = "The networks must be IPv4 CIDR blocks with no address bits beyond the prefix, as 10.0.0.0/24."
  }

  validation {
    # Two blocks overlap when they are the same block at the shorter of the two prefixes.
    condition = try(alltrue(flatten([
      for zone, cidr in var.network.subnets : [
        for other_zone, other in var.network.subnets :
        zone == other_zone || (
          cidrsubnet("${split("/", cidr)[0]}/${min(split("/", cidr)[1], split("/", other)[1])}", 0, 0) !=
          cidrsubnet("${split("/", other)[0]}/${min(split("/", cidr)[1], split("/", other)[1])}", 0, 0)
        )
      ]
    ])), false)
    error_message = "network.subnets overlap: give each zone a network of its own."
  }

  validation {
    condition = var.network.cidr_block == null || try(alltrue([
      for cidr in values(var.network.subnets) :
      split("/", cidr)[1] >= split("/", var.network.cidr_block)[1] && split("/", cidr)[1] <= 28 &&
      cidrsubnet("${split("/", cidr)[0]}/${split("/", var.network.cidr_block)[1]}", 0, 0) == var.network.cidr_block
    ]), false)
    error_message = "network.subnets must lie within network.cidr_block and be /28 or larger."
  }

  validation {
    condition = alltrue([
      for zone in keys(var.network.existing == null ? var.network.subnets : var.network.existing.subnet_ids) :
      contains(data.aws_availability_zones.usable.names, zone)
    ])
    error_message = "network names an unknown zone: take names of this region's availability zones, as eu-central-1a, that your account may use."
  }
}

variable "fleet" {
  description = <<-EOT
    The instances. `ami_id`: the image with the agent; `root_device`: the name of its root disk (Ubuntu: /dev/sda1), for another
    one would be a second empty disk beside the spool. `expected_gbps`: mirrored traffic that one instance takes at its peak,
    in Gb/s; scaling aims at 60 % of it, and as much goes out again to S3, so that the type's network must carry twice that.
    `warm_up_seconds`: from launch to healthy. `min_size` should be at least the number of zones with mirrored sources,
    or cross-zone balancing on.
  EOT
  type = object({
    ami_id          = string
    instance_type   = optional(string, "c6in.xlarge")
    min_size        = optional(number, 1)
    max_size        = optional(number, 4)
    expected_gbps   = optional(number, 1)
    warm_up_seconds = optional(number, 120)
    root_device     = optional(string, "/dev/xvda")
    root_gib        = optional(number, 16)
  })

  validation {
    condition     = can(regex("^ami-[0-9a-f]{8,17}$", var.fleet.ami_id))
    error_message = "fleet.ami_id must be the id of an image, as ami-0123456789abcdef0."
  }

  validation {
    condition     = can(regex("^[a-z0-9-]+\\.[a-z0-9-]+$", var.fleet.instance_type))
    error_message = "fleet.instance_type must be an EC2 instance type, as c6in.xlarge."
  }

  validation {
    condition = (
      floor(var.fleet.min_size) == var.fleet.min_size && floor(var.fleet.max_size) == var.fleet.max_size &&
      var.fleet.min_size >= 0 && var.fleet.max_size >= max(1, var.fleet.min_size) && var.fleet.max_size <= 500
    )
    error_message = "fleet.min_size and fleet.max_size must be whole numbers with 0 <= min_size <= max_size and 1 <= max_size <= 500."
  }

  validation {
    condition     = var.fleet.expected_gbps >= 0.01 && var.fleet.expected_gbps <= 100
    error_message = "fleet.expected_gbps must be from 0.01 to 100."
  }

  validation {
    condition     = var.fleet.warm_up_seconds >= 30 && var.fleet.warm_up_seconds <= 3600
    error_message = "fleet.warm_up_seconds must be from 30 to 3600."
  }

  validation {
    condition     = can(regex("^/dev/(xvda|sda1)$", var.fleet.root_device))
    error_message = "fleet.root_device must be the name of the image's root disk: /dev/xvda or /dev/sda1."
  }

  validation {
    condition     = var.fleet.root_gib >= 8 && var.fleet.root_gib <= 1024
    error_message = "fleet.root_gib must be from 8 to 1024."
  }
}

variable "load_balancer" {
  description = <<-EOT
    The Gateway Load Balancer; null: none, and no fleet, only what a single sensor needs. `stickiness`: what keeps a flow on
    one instance: "5_tuple" spreads one mirrored interface over up to 128 flows and keeps both directions of a
    conversation together; "source_ip_dest_ip_proto" and "source_ip_dest_ip" pin a whole interface to one instance, which
    a busy one can overload. `deregistration_delay` in seconds: how long a leaving instance still gets old flows.
  EOT
  type = object({
    stickiness                        = optional(string, "5_tuple")
    cross_zone_load_balancing_enabled = optional(bool, true)
    deletion_protection_enabled       = optional(bool, false)
    deregistration_delay              = optional(number, 120)
  })
  default = {}

  validation {
    condition     = var.load_balancer == null || contains(["5_tuple", "source_ip_dest_ip_proto", "source_ip_dest_ip"], try(var.load_balancer.stickiness, ""))
    error_message = "load_balancer.stickiness must be 5_tuple, source_ip_dest_ip_proto or source_ip_dest_ip."
  }

  validation {
    condition     = var.load_balancer == null || try(var.load_balancer.deregistration_delay >= 0 && var.load_balancer.deregistration_delay <= 3600, false)
    error_message = "load_balancer.deregistration_delay must be from 0 to 3600 seconds."
  }
}

variable "endpoint_service" {
  description = <<-EOT
    Who may make endpoints to the load balancer, and so send packets into the captures. `allowed_principals`: ARNs, usually
    of the spoke accounts' roots. `allow_any_principal`: must be true for the principal "*", which lets every AWS
    account put packets into your captures. `enable_manual_acceptance`: each endpoint waits until somebody accepts it.
  EOT
  type = object({
    allowed_principals       = optional(list(string), [])
    allow_any_principal      = optional(bool, false)
    enable_manual_acceptance = optional(bool, true)
  })
  default = {}

  validation {
    condition     = var.endpoint_service.allow_any_principal || !contains(var.endpoint_service.allowed_principals, "*")
    error_message = "The principal \"*\" lets every AWS account put packets into your captures: name the accounts, or set endpoint_service.allow_any_principal."
  }

  validation {
    condition = alltrue([
      for principal in var.endpoint_service.allowed_principals :
      principal == "*" || can(regex("^arn:aws(-cn|-us-gov)?:iam::[0-9]{12}:(root|role/.+|user/.+)$", principal))
    ])
    error_message = "endpoint_service.allowed_principals must be ARNs of accounts, roles or users, as arn:aws:iam::123456789012:root."
  }
}

variable "spool" {
  description = <<-EOT
    Each instance's volume of its own for what S3 has not confirmed yet (gp3). It stays when the instance goes, unless
    `delete_on_termination`. The output `spool_outage_hours` says how long an outage of S3 it bridges.
  EOT
  type = object({
    size_gib              = optional(number, 500)
    iops                  = optional(number, 3000)
    throughput_mibs       = optional(number, 250)
    delete_on_termination = optional(bool, false)
  })
  default = {}

  validation {
    condition     = var.spool.size_gib >= 8 && var.spool.size_gib <= 16384 && floor(var.spool.size_gib) == var.spool.size_gib
    error_message = "spool.size_gib must be a whole number from 8 to 16384."
  }

  validation {
    condition     = var.spool.iops >= 3000 && var.spool.iops <= min(16000, 500 * max(var.spool.size_gib, 6))
    error_message = "spool.iops must be from 3000 to 16000, and at most 500 for each GiB."
  }

  validation {
    condition     = var.spool.throughput_mibs >= 125 && var.spool.throughput_mibs <= min(1000, var.spool.iops / 4)
    error_message = "spool.throughput_mibs must be from 125 to 1000, and at most a quarter of spool.iops."
  }

  validation {
    # MiB/s to Gb/s. What is written must also be read again after an outage, but not at the same speed.
    condition     = var.spool.throughput_mibs * 8388608 / 1000000000 >= var.fleet.expected_gbps
    error_message = "The spool is slower than the traffic: spool.throughput_mibs must be at least 120 for each Gb/s of fleet.expected_gbps."
  }
}

variable "bucket" {
  description = <<-EOT
    The bucket of captures. `name`: unique in the partition. `key_prefix`: before <instance-id>/ in capture keys
    ("packet-captures/" is the AWS sample's). `transition_days`: then STANDARD_IA; null: never. `expire_days`: then deleted; null: kept.
    `abort_incomplete_days`: when a multipart upload that nobody ends is given up; longer than any outage of S3
    that the spool shall survive. `object_lock`: mode GOVERNANCE or COMPLIANCE for so many days. `replication`: a
    versioned bucket (and its KMS key) that gets a copy. `access_logs`: an existing bucket that takes them.
    `force_destroy`: `terraform destroy` deletes the captures, too.
  EOT
  type = object({
    name                  = string
    key_prefix            = optional(string, "")
    transition_days       = optional(number, 30)
    expire_days           = optional(number)
    abort_incomplete_days = optional(number, 7)
    force_destroy         = optional(bool, false)
    object_lock           = optional(object({ mode = string, days = number }))
    replication           = optional(object({ bucket_arn = string, kms_key_arn = string }))
    access_logs           = optional(object({ bucket = string, prefix = optional(string, "") }))
  })

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket.name))
    error_message = "bucket.name must be 3 to 63 lower-case letters, digits, dots and hyphens, with a letter or digit at both ends."
  }

  validation {
    condition = var.bucket.key_prefix == "" || (
      can(regex("^([A-Za-z0-9!_.*'()-]+/)+$", var.bucket.key_prefix)) && length(var.bucket.key_prefix) <= 512 &&
      !contains(["manifest", "status", "sessions", "index"], split("/", var.bucket.key_prefix)[0])
    )
    error_message = "bucket.key_prefix must be empty or end in /, as packet-captures/; its first part must not be manifest, status, sessions or index."
  }

  validation {
    condition     = var.bucket.abort_incomplete_days >= 1 && floor(var.bucket.abort_incomplete_days) == var.bucket.abort_incomplete_days
    error_message = "bucket.abort_incomplete_days must be a whole number of days, at least 1."
  }

  validation {
    # At the expected rate; a slower one fills the spool later.
    condition     = var.bucket.abort_incomplete_days * 24 > local._spool_outage_hours
    error_message = "bucket.abort_incomplete_days must be longer than the outage that the spool survives (output spool_outage_hours): else S3 forgets uploads that would still be resumed."
  }

  validation {
    condition     = var.bucket.expire_days == null || try(var.bucket.expire_days > var.bucket.abort_incomplete_days && floor(var.bucket.expire_days) == var.bucket.expire_days, false)
    error_message = "bucket.expire_days must be a whole number of days and longer than bucket.abort_incomplete_days: else captures are deleted while others of their time are still on their way."
  }

  validation {
    condition     = var.bucket.transition_days == null || try(var.bucket.transition_days >= 30 && floor(var.bucket.transition_days) == var.bucket.transition_days, false)
    error_message = "bucket.transition_days must be a whole number of days, at least 30 as S3 demands for STANDARD_IA, or null."
  }

  validation {
    condition = var.bucket.expire_days == null || var.bucket.transition_days == null || try(
      var.bucket.expire_days > var.bucket.transition_days, false
    )
    error_message = "bucket.expire_days must be longer than bucket.transition_days."
  }

  validation {
    condition = var.bucket.object_lock == null || try(
      contains(["GOVERNANCE", "COMPLIANCE"], var.bucket.object_lock.mode) &&
      var.bucket.object_lock.days >= 1 && floor(var.bucket.object_lock.days) == var.bucket.object_lock.days &&
      (var.bucket.expire_days == null || var.bucket.object_lock.days <= var.bucket.expire_days), false
    )
    error_message = "bucket.object_lock needs mode GOVERNANCE or COMPLIANCE and a whole number of days, at least 1 and no more than bucket.expire_days."
  }

  validation {
    condition = var.bucket.replication == null || try(
      can(regex("^arn:aws(-cn|-us-gov)?:s3:::[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket.replication.bucket_arn)) &&
      can(regex("^arn:aws(-cn|-us-gov)?:kms:[a-z0-9-]+:[0-9]{12}:key/.+$", var.bucket.replication.kms_key_arn)), false
    )
    error_message = "bucket.replication needs ARNs: bucket_arn of a bucket, as arn:aws:s3:::copies, kms_key_arn of its key, as arn:aws:kms:eu-west-1:123456789012:key/0."
  }

  validation {
    condition = var.bucket.access_logs == null || try(
      can(regex("^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$", var.bucket.access_logs.bucket)) && var.bucket.access_logs.bucket != var.bucket.name, false
    )
    error_message = "bucket.access_logs.bucket must be the name of another bucket: logs of a bucket in itself are logged again."
  }
}

variable "alert" {
  description = <<-EOT
    Who hears of troubles. `sns_notify_emails`: each address gets a mail from AWS and must confirm it. `alarm_accounts`: spoke
    accounts whose alarms may publish to the topic.
  EOT
  type = object({
    sns_notify_emails = list(string)
    alarm_accounts    = optional(list(string), [])
  })

  validation {
    condition     = length(var.alert.sns_notify_emails) > 0 && alltrue([for address in var.alert.sns_notify_emails : can(regex("^[^@[:space:]]+@[^@[:space:]]+\\.[^@[:space:]]+$", address))])
    error_message = "alert.sns_notify_emails must name at least one e-mail address: a failure that nobody hears of is no use."
  }

  validation {
    condition     = alltrue([for account in var.alert.alarm_accounts : can(regex("^[0-9]{12}$", account))])
    error_message = "alert.alarm_accounts must be account ids of 12 digits."
  }
}

variable "settings" {
  description = <<-EOT
    Further settings of the agent, section by section as in agent/tapfleet.example.toml: { record = { format = "pcapng" } }.
    Bucket, topic, spool, ports, health and instance group follow from the other variables.
  EOT
  type        = any
  default     = {}

  validation {
    condition     = can([for section, keys in var.settings : [for key, value in keys : jsonencode(value)]])
    error_message = "settings must be an object of sections, each an object of keys: { record = { format = \"pcapng\" } }."
  }

  validation {
    condition = try(length(setintersection(
      flatten([for section, keys in var.settings : [for key in keys(keys) : "${section}.${key}"]]),
      flatten([for section, keys in local._fixed_settings : [for key in keys(keys) : "${section}.${key}"]]),
    )) == 0, true)
    error_message = "settings must not name what the module sets itself: s3.bucket, s3.key_prefix, s3.region, s3.expected_bucket_owner, alert.topic_arn, spool.dir, spool.max_bytes, health.listen, capture.ports.*, capture.outer_sources, instance.group, metrics.cloudwatch_namespace."
  }
}

variable "endpoints" {
  description = <<-EOT
    How AWS is reached without the internet. `create`: make the VPC endpoints; false where the existing VPC has them. `fips`,
    `dual_stack`: the agent asks for FIPS or dual-stack host names. `service_names`: full names where they differ
    from the usual, as { sns = "com.amazonaws.us-gov-west-1.sns-fips" }; a service with the name "" gets none.
  EOT
  type = object({
    create        = optional(bool, true)
    fips          = optional(bool, false)
    dual_stack    = optional(bool, false)
    service_names = optional(map(string), {})
  })
  default = {}

  validation {
    condition     = alltrue([for name in values(var.endpoints.service_names) : can(regex("^([a-z0-9-]+([.][a-z0-9-]+)+)?$", name))])
    error_message = "endpoints.service_names must be full names, as com.amazonaws.us-gov-west-1.sns-fips, or empty for no endpoint."
  }

  validation {
    condition     = length(setsubtract(keys(var.endpoints.service_names), local._endpoint_services)) == 0
    error_message = "endpoints.service_names knows: autoscaling, ec2, ec2messages, kms, logs, monitoring, sns, ssm, ssmmessages, sts."
  }
}

variable "permissions_boundary_arn" {
  description = "ARN of the policy that bounds every role the module makes; null: none."
  type        = string
  default     = null

  validation {
    condition     = var.permissions_boundary_arn == null || can(regex("^arn:aws(-cn|-us-gov)?:iam::([0-9]{12}|aws):policy/.+$", var.permissions_boundary_arn))
    error_message = "permissions_boundary_arn must be the ARN of an IAM policy, or null."
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
