locals {
  # The one target of a direct one.
  _direct = "direct"

  # Bytes after the VXLAN header that reach the target uncut (Traffic Mirroring guide, "Limits"; IPv4 sources).
  _packet_length_max = var.direct_target == null ? 8446 : local._has_nlb ? 8500 : 8947

  _target_ids = merge(
    { for zone, target in aws_ec2_traffic_mirror_target.endpoint : zone => target.id },
    { for target in aws_ec2_traffic_mirror_target.direct : local._direct => target.id },
  )
}

resource "aws_ec2_traffic_mirror_target" "endpoint" {
  for_each = aws_vpc_endpoint.captures

  description                       = "${var.name}: load balancer endpoint of ${each.key}"
  gateway_load_balancer_endpoint_id = each.value.id
  tags                              = merge(local._tags, { Name = "${var.name}-${each.key}" })

  # One that a session uses cannot be deleted: first the sessions move to the new one.
  lifecycle {
    create_before_destroy = true
  }
}

resource "aws_ec2_traffic_mirror_target" "direct" {
  count = var.direct_target == null ? 0 : 1

  description               = "${var.name}: agents without a Gateway Load Balancer"
  network_interface_id      = var.direct_target.network_interface_id
  network_load_balancer_arn = one(aws_lb.vxlan[*].arn)
  tags                      = merge(local._tags, { Name = var.name })

  # As above.
  lifecycle {
    create_before_destroy = true
  }

  depends_on = [aws_lb_listener.vxlan]
}
