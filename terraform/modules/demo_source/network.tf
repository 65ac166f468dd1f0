# A VPC that nothing leads into or out of: what is mirrored is what its instances say to each other.
resource "aws_vpc" "sources" {
  #checkov:skip=CKV2_AWS_11: a demo; what its instances say is mirrored
  cidr_block           = var.cidr_block
  enable_dns_hostnames = true
  tags                 = merge(local._tags, { Name = var.name })
}

resource "aws_default_security_group" "closed" {
  vpc_id = aws_vpc.sources.id
  tags   = merge(local._tags, { Name = "${var.name}-closed" })
}

resource "aws_subnet" "sources" {
  for_each = var.subnets

  vpc_id            = aws_vpc.sources.id
  availability_zone = each.key
  cidr_block        = each.value
  tags              = merge(local._tags, { Name = "${var.name}-${each.key}" })
}

resource "aws_route_table" "sources" {
  vpc_id = aws_vpc.sources.id
  tags   = merge(local._tags, { Name = var.name })
}

resource "aws_route_table_association" "sources" {
  for_each = aws_subnet.sources

  subnet_id      = each.value.id
  route_table_id = aws_route_table.sources.id
}
