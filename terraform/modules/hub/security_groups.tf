resource "aws_security_group" "agents" {
  #checkov:skip=CKV2_AWS_5: attached by the launch template
  name        = "${var.name}-agents"
  description = "Capture agents: tunnels and health checks in, AWS endpoints out"
  vpc_id      = local._vpc_id
  tags        = merge(local._tags, { Name = "${var.name}-agents" })
}

resource "aws_vpc_security_group_ingress_rule" "geneve" {
  for_each = local._balanced ? local._subnet_cidrs : {}

  security_group_id = aws_security_group.agents.id
  description       = "GENEVE from the load balancer in ${each.key}"
  ip_protocol       = "udp"
  from_port         = local._geneve_port
  to_port           = local._geneve_port
  cidr_ipv4         = each.value
  tags              = local._tags
}

resource "aws_vpc_security_group_ingress_rule" "health" {
  for_each = local._balanced ? local._subnet_cidrs : {}

  security_group_id = aws_security_group.agents.id
  description       = "Health checks of the load balancer in ${each.key}"
  ip_protocol       = "tcp"
  from_port         = local._health_port
  to_port           = local._health_port
  cidr_ipv4         = each.value
  tags              = local._tags
}

resource "aws_vpc_security_group_ingress_rule" "vxlan" {
  for_each = toset(var.network.direct_sources)

  security_group_id = aws_security_group.agents.id
  description       = "VXLAN straight from mirrored interfaces"
  ip_protocol       = "udp"
  from_port         = local._vxlan_port
  to_port           = local._vxlan_port
  cidr_ipv4         = each.value
  tags              = local._tags
}

resource "aws_vpc_security_group_egress_rule" "bucket" {
  security_group_id = aws_security_group.agents.id
  description       = "S3 through the gateway endpoint"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  prefix_list_id    = data.aws_ec2_managed_prefix_list.bucket.id
  tags              = local._tags
}

resource "aws_vpc_security_group_egress_rule" "endpoints" {
  for_each = local._subnet_cidrs

  security_group_id = aws_security_group.agents.id
  description       = "Interface endpoints in ${each.key}"
  ip_protocol       = "tcp"
  from_port         = 443
  to_port           = 443
  cidr_ipv4         = each.value
  tags              = local._tags
}

resource "aws_security_group" "endpoints" {
  count = var.endpoints.create ? 1 : 0

  name        = "${var.name}-endpoints"
  description = "Interface endpoints: HTTPS from the capture agents"
  vpc_id      = local._vpc_id
  tags        = merge(local._tags, { Name = "${var.name}-endpoints" })
}

resource "aws_vpc_security_group_ingress_rule" "endpoints" {
  count = var.endpoints.create ? 1 : 0

  security_group_id            = aws_security_group.endpoints[0].id
  description                  = "HTTPS from the capture agents"
  ip_protocol                  = "tcp"
  from_port                    = 443
  to_port                      = 443
  referenced_security_group_id = aws_security_group.agents.id
  tags                         = local._tags
}
