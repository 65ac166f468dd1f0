resource "aws_vpc_endpoint_service" "captures" {
  #checkov:skip=CKV_AWS_123: a variable, on by default; the examples allow named accounts only and accept them at once
  count = local._balanced ? 1 : 0

  acceptance_required        = var.endpoint_service.enable_manual_acceptance
  gateway_load_balancer_arns = [aws_lb.gateway[0].arn]
  tags                       = merge(local._tags, { Name = var.name })
}

# Apart from the service: one principal more or less is one resource more or less, and changes nobody else's.
resource "aws_vpc_endpoint_service_allowed_principal" "spoke" {
  for_each = toset(local._balanced ? var.endpoint_service.allowed_principals : [])

  vpc_endpoint_service_id = aws_vpc_endpoint_service.captures[0].id
  principal_arn           = each.value
}
