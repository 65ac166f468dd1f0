locals {
  _zones = sort(keys(var.subnets))

  # Addresses are chosen here, so that each instance can be told of the others. The first ten of a subnet stay free.
  _sources = {
    for index in range(var.src_ec2_count) : "source-${index + 1}" => {
      zone    = local._zones[index % length(local._zones)]
      address = cidrhost(var.subnets[local._zones[index % length(local._zones)]], 10 + floor(index / length(local._zones)))
    }
  }
}

data "aws_ssm_parameter" "image" {
  count = var.src_ec2_count > 0 ? 1 : 0

  name = "/aws/service/ami-amazon-linux-latest/al2023-ami-kernel-default-x86_64"
}

resource "aws_security_group" "sources" {
  name        = "${var.name}-sources"
  description = "Demo sources: ping and HTTP among themselves"
  vpc_id      = aws_vpc.sources.id
  tags        = merge(local._tags, { Name = "${var.name}-sources" })
}

resource "aws_vpc_security_group_ingress_rule" "ping" {
  security_group_id = aws_security_group.sources.id
  description       = "Ping among the sources"
  ip_protocol       = "icmp"
  from_port         = 8
  to_port           = -1
  cidr_ipv4         = var.cidr_block
}

resource "aws_vpc_security_group_ingress_rule" "http" {
  security_group_id = aws_security_group.sources.id
  description       = "HTTP among the sources"
  ip_protocol       = "tcp"
  from_port         = 8000
  to_port           = 8000
  cidr_ipv4         = var.cidr_block
}

resource "aws_vpc_security_group_egress_rule" "sources" {
  security_group_id = aws_security_group.sources.id
  description       = "Anything within the VPC"
  ip_protocol       = "-1"
  cidr_ipv4         = var.cidr_block
}

resource "aws_instance" "source" {
  #checkov:skip=CKV_AWS_126: a demo that nobody watches
  #checkov:skip=CKV2_AWS_41: it calls no AWS service
  for_each = local._sources

  ami                    = nonsensitive(data.aws_ssm_parameter.image[0].value)
  instance_type          = var.instance_type
  subnet_id              = aws_subnet.sources[each.value.zone].id
  private_ip             = each.value.address
  vpc_security_group_ids = [aws_security_group.sources.id]
  ebs_optimized          = true
  tags                   = merge(local._tags, { Name = "${var.name}-${each.key}" })

  user_data = templatefile("${path.module}/traffic.sh.tftpl", {
    peers = join(" ", [for name, source in local._sources : source.address if name != each.key])
  })

  metadata_options {
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  root_block_device {
    encrypted   = true
    volume_type = "gp3"
  }

  # A newer image is no reason to make a demo anew.
  lifecycle {
    ignore_changes = [ami]
  }
}
