locals {
  _balanced = var.load_balancer != null
  # What the image's agent listens on; tests/tests/terraform.rs holds them against the agent and its unit.
  _geneve_port = 6081
  _vxlan_port  = 4789
  _health_port = 8080
}

resource "aws_lb" "gateway" {
  #checkov:skip=CKV_AWS_150: a variable, off by default: it holds no data, and protection would only make destroy fail
  #checkov:skip=CKV_AWS_152: a variable, on by default
  count = local._balanced ? 1 : 0

  name                             = "${var.name}-gwlb"
  load_balancer_type               = "gateway"
  subnets                          = values(local._subnet_ids)
  enable_cross_zone_load_balancing = var.load_balancer.cross_zone_load_balancing_enabled
  enable_deletion_protection       = var.load_balancer.deletion_protection_enabled
  tags                             = local._tags
}

resource "aws_lb_target_group" "agents" {
  count = local._balanced ? 1 : 0

  name                 = "${var.name}-agents"
  vpc_id               = local._vpc_id
  target_type          = "instance"
  protocol             = "GENEVE"
  port                 = local._geneve_port
  deregistration_delay = var.load_balancer.deregistration_delay
  tags                 = local._tags

  # 503 means that a new instance would help, or that this one is leaving: the agent's promise 6.
  health_check {
    protocol            = "HTTP"
    port                = local._health_port
    path                = "/healthz"
    matcher             = "200"
    interval            = 10
    timeout             = 5
    healthy_threshold   = 2
    unhealthy_threshold = 3
  }

  # A mirror session is one flow that never ends: without this a dead instance keeps its flows.
  target_failover {
    on_deregistration = "rebalance"
    on_unhealthy      = "rebalance"
  }

  dynamic "stickiness" {
    for_each = var.load_balancer.stickiness == "5_tuple" ? [] : [var.load_balancer.stickiness]

    content {
      enabled = true
      type    = stickiness.value
    }
  }
}

resource "aws_lb_listener" "gateway" {
  #checkov:skip=CKV_AWS_2: a gateway listener takes all of IP and has no protocol
  count = local._balanced ? 1 : 0

  load_balancer_arn = aws_lb.gateway[0].arn
  tags              = local._tags

  default_action {
    type             = "forward"
    target_group_arn = aws_lb_target_group.agents[0].arn
  }
}
