locals {
  _everything = [
    for pair in setproduct(["ingress", "egress"], ["0.0.0.0/0", "::/0"]) : {
      direction              = pair[0]
      action                 = "accept"
      protocol               = null
      source_cidr_block      = pair[1]
      destination_cidr_block = pair[1]
      ports                  = null
      peer_ports             = null
      description            = null
    }
  ]

  # Numbered in tens by their place: a changed rule is changed in place, one at the end takes nothing from the others.
  _rules = {
    for index, rule in length(var.filter.rules) == 0 ? local._everything : var.filter.rules : (index + 1) * 10 => rule
  }
}

resource "aws_ec2_traffic_mirror_filter" "sources" {
  description      = "${var.name}: what is mirrored"
  network_services = var.filter.network_services
  tags             = merge(local._tags, { Name = var.name })
}

resource "aws_ec2_traffic_mirror_filter_rule" "source" {
  for_each = local._rules

  traffic_mirror_filter_id = aws_ec2_traffic_mirror_filter.sources.id
  description              = coalesce(each.value.description, "${each.value.direction} ${each.key}")
  rule_number              = each.key
  traffic_direction        = each.value.direction
  rule_action              = each.value.action
  protocol                 = each.value.protocol
  source_cidr_block        = each.value.source_cidr_block
  destination_cidr_block   = each.value.destination_cidr_block

  dynamic "destination_port_range" {
    for_each = each.value.ports == null ? [] : [each.value.ports]

    content {
      from_port = destination_port_range.value.from
      to_port   = destination_port_range.value.to
    }
  }

  dynamic "source_port_range" {
    for_each = each.value.peer_ports == null ? [] : [each.value.peer_ports]

    content {
      from_port = source_port_range.value.from
      to_port   = source_port_range.value.to
    }
  }
}
