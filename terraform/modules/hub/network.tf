locals {
  _makes_vpc    = var.network.existing == null
  _vpc_id       = local._makes_vpc ? aws_vpc.hub[0].id : var.network.existing.vpc_id
  _subnet_ids   = local._makes_vpc ? { for zone, subnet in aws_subnet.agents : zone => subnet.id } : var.network.existing.subnet_ids
  _route_tables = local._makes_vpc ? [aws_route_table.agents[0].id] : var.network.existing.route_table_ids
  # The load balancer's own addresses lie in these: it stands in the agents' subnets.
  _subnet_cidrs = local._makes_vpc ? var.network.subnets : { for zone, subnet in data.aws_subnet.existing : zone => subnet.cidr_block }
}

data "aws_subnet" "existing" {
  for_each = local._makes_vpc ? {} : var.network.existing.subnet_ids

  id = each.value

  lifecycle {
    postcondition {
      condition     = self.availability_zone == each.key && self.vpc_id == var.network.existing.vpc_id
      error_message = "network.existing.subnet_ids: ${each.value} is not a subnet of zone ${each.key} in ${var.network.existing.vpc_id}."
    }

    postcondition {
      condition     = !self.map_public_ip_on_launch
      error_message = "network.existing.subnet_ids: ${each.value} gives public addresses to what is launched in it; agents belong in a private subnet."
    }
  }
}

# No internet gateway, no NAT: what the agents need of AWS comes through the endpoints.
resource "aws_vpc" "hub" {
  #checkov:skip=CKV2_AWS_11: flow logs do not show mirrored traffic, and nothing else gets in; a landing zone adds its own
  count = local._makes_vpc ? 1 : 0

  cidr_block           = var.network.cidr_block
  enable_dns_hostnames = true
  enable_dns_support   = true
  tags                 = merge(local._tags, { Name = var.name })
}

# Taken over to be emptied: nothing may use it by accident.
resource "aws_default_security_group" "closed" {
  count = local._makes_vpc ? 1 : 0

  vpc_id = aws_vpc.hub[0].id
  tags   = merge(local._tags, { Name = "${var.name}-closed" })
}

resource "aws_subnet" "agents" {
  for_each = local._makes_vpc ? var.network.subnets : {}

  vpc_id            = aws_vpc.hub[0].id
  availability_zone = each.key
  cidr_block        = each.value
  tags              = merge(local._tags, { Name = "${var.name}-agents-${each.key}" })
}

resource "aws_route_table" "agents" {
  count = local._makes_vpc ? 1 : 0

  vpc_id = aws_vpc.hub[0].id
  tags   = merge(local._tags, { Name = "${var.name}-agents" })
}

resource "aws_route_table_association" "agents" {
  for_each = aws_subnet.agents

  subnet_id      = each.value.id
  route_table_id = aws_route_table.agents[0].id
}
