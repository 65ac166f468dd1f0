locals {
  _endpoint_services = ["autoscaling", "ec2", "ec2messages", "kms", "logs", "monitoring", "sns", "ssm", "ssmmessages", "sts"]

  # In China most interface services have the prefix of the partition, S3 has not.
  _reverse_suffix = local._partition == "aws-cn" ? "cn.com.amazonaws" : "com.amazonaws"
  _service_names = {
    for service in local._endpoint_services :
    service => lookup(var.endpoints.service_names, service, "${local._reverse_suffix}.${local._region}.${service}")
  }
}

data "aws_ec2_managed_prefix_list" "bucket" {
  name = "com.amazonaws.${local._region}.s3"
}

# Whoever gets onto an instance cannot carry captures to a bucket of another account through here.
data "aws_iam_policy_document" "bucket_endpoint" {
  statement {
    sid       = "OnlyTheCaptureBucket"
    actions   = ["s3:*"]
    resources = [local._bucket_arn, "${local._bucket_arn}/*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:PrincipalAccount"
      values   = [local._account]
    }
  }
}

data "aws_iam_policy_document" "interface_endpoint" {
  #checkov:skip=CKV_AWS_49: an endpoint serves one service; who may do what there the roles say
  #checkov:skip=CKV_AWS_1: an endpoint policy grants nothing, it only lets through
  statement {
    sid       = "OnlyThisAccount"
    actions   = ["*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:PrincipalAccount"
      values   = [local._account]
    }
  }
}

resource "aws_vpc_endpoint" "bucket" {
  count = var.endpoints.create ? 1 : 0

  vpc_id            = local._vpc_id
  vpc_endpoint_type = "Gateway"
  service_name      = "com.amazonaws.${local._region}.s3"
  route_table_ids   = local._route_tables
  policy            = data.aws_iam_policy_document.bucket_endpoint.json
  tags              = merge(local._tags, { Name = "${var.name}-s3" })
}

resource "aws_vpc_endpoint" "interface" {
  for_each = var.endpoints.create ? { for service, name in local._service_names : service => name if name != "" } : {}

  vpc_id              = local._vpc_id
  vpc_endpoint_type   = "Interface"
  service_name        = each.value
  subnet_ids          = values(local._subnet_ids)
  security_group_ids  = [aws_security_group.endpoints[0].id]
  private_dns_enabled = true
  policy              = data.aws_iam_policy_document.interface_endpoint.json
  tags                = merge(local._tags, { Name = "${var.name}-${each.key}" })
}
