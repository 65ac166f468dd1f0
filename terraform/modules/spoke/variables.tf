variable "name" {
  description = "First part of the name of everything the module makes."
  type        = string
  default     = "tapfleet"

  validation {
    # The longest name that is made of it is the load balancer's, of at most 32 characters.
    condition     = can(regex("^[a-z][a-z0-9-]{0,22}[a-z0-9]$", var.name))
    error_message = "name must be 2 to 24 lower-case letters, digits and hyphens, must begin with a letter and not end with a hyphen."
  }
}

variable "vpc_id" {
  description = "VPC of the mirrored sources."
  type        = string

  validation {
    condition     = can(regex("^vpc-[0-9a-f]{8,17}$", var.vpc_id))
    error_message = "vpc_id must be the id of a VPC, as vpc-0123456789abcdef0."
  }
}

variable "gwlb_endpoint_service_name" {
  description = "Output of the hub of the same name: mirrored packets go to endpoints of it. Null with direct_target."
  type        = string
  default     = null

  validation {
    condition     = (var.gwlb_endpoint_service_name == null) != (var.direct_target == null)
    error_message = "Give either gwlb_endpoint_service_name or direct_target: a mirrored packet goes one way."
  }

  validation {
    condition     = var.gwlb_endpoint_service_name == null || can(regex("^(cn\\.)?com\\.amazonaws\\.vpce\\.[a-z0-9-]+\\.vpce-svc-[0-9a-f]+$", var.gwlb_endpoint_service_name))
    error_message = "gwlb_endpoint_service_name must be the name of an endpoint service, as com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0."
  }
}

variable "subnet_ids" {
  description = <<-EOT
    One subnet for each zone with sources, by zone name: where its endpoint stands (with direct_target, where the network
    load balancer does). A packet that leaves its zone costs money.
  EOT
  type        = map(string)
  default     = {}

  validation {
    condition     = alltrue([for zone, subnet in var.subnet_ids : can(regex("^[a-z]{2}(-[a-z]+)+-[0-9][a-z]$", zone)) && can(regex("^subnet-[0-9a-f]{8,17}$", subnet))])
    error_message = "subnet_ids must map names of availability zones to ids of subnets, as { \"eu-central-1a\" = \"subnet-0123456789abcdef0\" }."
  }

  validation {
    condition     = length(var.subnet_ids) > 0 || try(var.direct_target.network_interface_id, null) != null
    error_message = "subnet_ids must name at least one zone and its subnet."
  }
}

variable "direct_target" {
  description = <<-EOT
    Instead of a load balancer endpoint: `network_interface_id` of one agent, or `agent_addresses`, which get a network load
    balancer with a UDP 4789 listener before them, in this VPC. Their security group must let UDP 4789 in.
  EOT
  type = object({
    network_interface_id = optional(string)
    agent_addresses      = optional(list(string), [])
  })
  default = null

  validation {
    condition     = var.direct_target == null || try((var.direct_target.network_interface_id == null) != (length(var.direct_target.agent_addresses) == 0), false)
    error_message = "direct_target needs either network_interface_id or agent_addresses."
  }

  validation {
    condition     = try(var.direct_target.network_interface_id, null) == null || can(regex("^eni-[0-9a-f]{8,17}$", var.direct_target.network_interface_id))
    error_message = "direct_target.network_interface_id must be the id of a network interface, as eni-0123456789abcdef0."
  }

  validation {
    condition     = alltrue([for address in try(var.direct_target.agent_addresses, []) : can(cidrhost("${address}/32", 0))])
    error_message = "direct_target.agent_addresses must be IPv4 addresses."
  }
}

variable "filter" {
  description = <<-EOT
    What is mirrored; everything if `rules` is empty, in both directions, IPv4 and IPv6. Rules are tried in their order; `protocol`
    is a number of IANA's (6 TCP, 17 UDP, 1 ICMP), null any; `ports` are of the side the `direction` leads to ("ingress":
    destination ports of what comes in; "egress": destination ports of what goes out); `peer_ports` of the other.
    `network_services`: ["amazon-dns"] mirrors queries to the VPC's resolver, too.
  EOT
  type = object({
    rules = optional(list(object({
      direction              = string
      action                 = optional(string, "accept")
      protocol               = optional(number)
      source_cidr_block      = optional(string, "0.0.0.0/0")
      destination_cidr_block = optional(string, "0.0.0.0/0")
      ports                  = optional(object({ from = number, to = number }))
      peer_ports             = optional(object({ from = number, to = number }))
      description            = optional(string)
    })), [])
    network_services = optional(list(string), ["amazon-dns"])
  })
  default = {}

  validation {
    # Amazon VPC Traffic Mirroring "Quotas": not adjustable.
    condition     = length(var.filter.rules) <= 10
    error_message = "filter.rules has more than ten rules: a Traffic Mirroring filter takes ten at most. Join networks, or filter on the agents (capture.filter)."
  }

  validation {
    condition     = alltrue([for rule in var.filter.rules : contains(["ingress", "egress"], rule.direction) && contains(["accept", "reject"], rule.action)])
    error_message = "filter.rules: direction must be ingress or egress, action accept or reject."
  }

  validation {
    condition     = alltrue([for rule in var.filter.rules : rule.protocol == null || try(rule.protocol >= 0 && rule.protocol <= 255 && floor(rule.protocol) == rule.protocol, false)])
    error_message = "filter.rules: protocol must be a number from 0 to 255, or null for any."
  }

  validation {
    condition = alltrue(flatten([
      for rule in var.filter.rules : [
        for ports in [rule.ports, rule.peer_ports] :
        ports == null || try(contains([6, 17], rule.protocol) && ports.from >= 0 && ports.from <= ports.to && ports.to <= 65535, false)
      ]
    ]))
    error_message = "filter.rules: ports need protocol 6 or 17 and 0 <= from <= to <= 65535."
  }

  validation {
    condition = alltrue(flatten([
      for rule in var.filter.rules : [
        can(cidrhost(rule.source_cidr_block, 0)) && can(cidrhost(rule.destination_cidr_block, 0)),
        strcontains(rule.source_cidr_block, ":") == strcontains(rule.destination_cidr_block, ":"),
      ]
    ]))
    error_message = "filter.rules: source and destination must both be IPv4 CIDR blocks or both IPv6."
  }

  validation {
    condition     = alltrue([for service in var.filter.network_services : service == "amazon-dns"])
    error_message = "filter.network_services knows only amazon-dns."
  }
}

variable "sessions" {
  description = <<-EOT
    What is mirrored now, by a name of yours: the network interface and the zone whose endpoint takes its packets, its own if it
    costs nothing more. `session_number` orders sessions of one interface; `virtual_network_id` (VNI) is AWS's choice when
    null; `packet_length` cuts each packet after so many bytes.
  EOT
  type = map(object({
    network_interface_id = string
    zone                 = optional(string)
    session_number       = optional(number, 1)
    virtual_network_id   = optional(number)
    packet_length        = optional(number)
    description          = optional(string)
  }))
  default = {}

  validation {
    condition     = alltrue([for session in values(var.sessions) : can(regex("^eni-[0-9a-f]{8,17}$", session.network_interface_id))])
    error_message = "sessions: network_interface_id must be the id of a network interface, as eni-0123456789abcdef0."
  }

  validation {
    condition     = alltrue([for session in values(var.sessions) : session.session_number >= 1 && session.session_number <= 32766 && floor(session.session_number) == session.session_number])
    error_message = "sessions: session_number must be a whole number from 1 to 32766."
  }

  validation {
    condition = alltrue([
      for session in values(var.sessions) :
      session.virtual_network_id == null || try(session.virtual_network_id >= 0 && session.virtual_network_id <= 16777215 && floor(session.virtual_network_id) == session.virtual_network_id, false)
    ])
    error_message = "sessions: virtual_network_id (VNI) must be a whole number from 0 to 16777215."
  }

  validation {
    condition = alltrue([
      for session in values(var.sessions) :
      session.packet_length == null || try(session.packet_length >= 1 && session.packet_length <= local._packet_length_max && floor(session.packet_length) == session.packet_length, false)
    ])
    error_message = "sessions: packet_length must be a whole number from 1 to the target's limit: 8446 for a load balancer endpoint (its MTU of 8500 less 54 bytes of headers), 8500 for a network load balancer, 8947 for a network interface."
  }

  validation {
    condition = var.direct_target != null || alltrue([
      for session in values(var.sessions) :
      session.zone == null ? length(var.subnet_ids) == 1 : contains(keys(var.subnet_ids), session.zone)
    ])
    error_message = "sessions: zone must be one that subnet_ids has an endpoint in; it may be left out only if there is one endpoint."
  }

  validation {
    condition     = length(distinct([for session in values(var.sessions) : "${session.network_interface_id} ${session.session_number}"])) == length(var.sessions)
    error_message = "sessions: two sessions of one network interface need two session numbers."
  }
}

variable "alarm" {
  description = "Where alarms of this spoke go: the hub's `topic_arn`, where this account is one of its alert.alarm_accounts. Null: no alarms."
  type        = object({ topic_arn = string })
  default     = null

  validation {
    condition     = var.alarm == null || can(regex("^arn:aws(-cn|-us-gov)?:sns:[a-z0-9-]+:[0-9]{12}:[A-Za-z0-9_-]+$", var.alarm.topic_arn))
    error_message = "alarm.topic_arn must be the ARN of a standard SNS topic."
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
