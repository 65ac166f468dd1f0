resource "aws_vpc_endpoint" "captures" {
  # Asked of direct_target: the service's name is not known before the hub is made.
  for_each = var.direct_target == null ? var.subnet_ids : {}

  vpc_id            = var.vpc_id
  vpc_endpoint_type = "GatewayLoadBalancer"
  service_name      = var.gwlb_endpoint_service_name
  subnet_ids        = [each.value]
  tags              = merge(local._tags, { Name = "${var.name}-${each.key}" })
}
