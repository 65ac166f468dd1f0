resource "aws_vpc_endpoint" "captures" {
  for_each = var.gwlb_endpoint_service_name == null ? {} : var.subnet_ids

  vpc_id            = var.vpc_id
  vpc_endpoint_type = "GatewayLoadBalancer"
  service_name      = var.gwlb_endpoint_service_name
  subnet_ids        = [each.value]
  tags              = merge(local._tags, { Name = "${var.name}-${each.key}" })
}
