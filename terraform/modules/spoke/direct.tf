# A network load balancer before agents, where no Gateway Load Balancer is wanted.
locals {
  _has_nlb     = try(length(var.direct_target.agent_addresses) > 0, false)
  _vxlan_port  = 4789
  _health_port = 8080
}

# Without a security group: VXLAN comes from any source in the VPC, and Traffic Mirroring is not one that a group could name.
resource "aws_lb" "vxlan" {
  #checkov:skip=CKV_AWS_150: it holds no data; protection would only make destroy fail
  #checkov:skip=CKV_AWS_91: a network load balancer logs TLS connections only
  count = local._has_nlb ? 1 : 0

  name                             = "${var.name}-vxlan"
  load_balancer_type               = "network"
  internal                         = true
  subnets                          = values(var.subnet_ids)
  enable_cross_zone_load_balancing = true
  tags                             = local._tags
}

resource "aws_lb_target_group" "vxlan" {
  count = local._has_nlb ? 1 : 0

  name               = "${var.name}-vxlan"
  vpc_id             = var.vpc_id
  target_type        = "ip"
  protocol           = "UDP"
  port               = local._vxlan_port
  preserve_client_ip = true
  tags               = local._tags

  health_check {
    protocol = "HTTP"
    port     = local._health_port
    path     = "/healthz"
    matcher  = "200"
  }
}

resource "aws_lb_target_group_attachment" "agent" {
  for_each = toset(local._has_nlb ? var.direct_target.agent_addresses : [])

  target_group_arn = aws_lb_target_group.vxlan[0].arn
  target_id        = each.value
  port             = local._vxlan_port
}

# Traffic Mirroring fails silently when it is missing (Traffic Mirroring guide, "Targets").
resource "aws_lb_listener" "vxlan" {
  count = local._has_nlb ? 1 : 0

  load_balancer_arn = aws_lb.vxlan[0].arn
  protocol          = "UDP"
  port              = local._vxlan_port
  tags              = local._tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.vxlan[0].arn
  }
}
