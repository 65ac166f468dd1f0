data "aws_iam_policy_document" "assumed_by" {
  for_each = {
    ec2    = "ec2.${local._suffix}"
    events = "events.amazonaws.com"
    s3     = "s3.amazonaws.com"
    states = "states.amazonaws.com"
  }

  statement {
    actions = ["sts:AssumeRole"]

    principals {
      type        = "Service"
      identifiers = [each.value]
    }
  }
}

locals {
  # IAM knows no regions: with one hub for each, the name must say which. The ARN is spelled, so that a plan shows the policies' text.
  _role_name = "${var.name}-agent-${local._region}"
  _role_arn  = "arn:${local._partition}:iam::${local._account}:role/${local._role_name}"
}

resource "aws_iam_role" "agent" {
  name                 = local._role_name
  description          = "Capture agents of ${var.name}"
  assume_role_policy   = data.aws_iam_policy_document.assumed_by["ec2"].json
  permissions_boundary = var.permissions_boundary_arn
  tags                 = local._tags
}

resource "aws_iam_instance_profile" "agent" {
  name = aws_iam_role.agent.name
  role = aws_iam_role.agent.name
  tags = local._tags
}

resource "aws_iam_role_policy" "agent" {
  name   = "capture"
  role   = aws_iam_role.agent.id
  policy = data.aws_iam_policy_document.agent.json
}

data "aws_iam_policy_document" "agent" {
  #checkov:skip=CKV_AWS_111: the statements on * are of actions that know no resources, or bound by a condition
  #checkov:skip=CKV_AWS_356: the statements on * are of actions that know no resources, or bound by a condition
  statement {
    sid       = "AddObjects"
    actions   = ["s3:PutObject"]
    resources = concat([local._capture_keys], local._index_keys)
  }

  # GetObject is what HEAD asks for: nothing leaves the disk before S3 has confirmed it. ListMultipartUploadParts and Abort resume.
  statement {
    sid       = "VerifyAndResume"
    actions   = ["s3:AbortMultipartUpload", "s3:GetObject", "s3:ListMultipartUploadParts"]
    resources = [local._capture_keys]
  }

  # Without ListBucket S3 answers 403 instead of 404 for a key that is free; without the other an agent does not find uploads that a
  # crash left, and they cost until the bucket aborts them.
  statement {
    sid       = "TellAbsentFromDenied"
    actions   = ["s3:ListBucket", "s3:ListBucketMultipartUploads"]
    resources = [local._bucket_arn]
  }

  # Decrypt: S3 asks for it at parts of a multipart upload and when a HEAD wants the checksum.
  statement {
    sid       = "EncryptCaptures"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.captures.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["s3.${local._region}.${local._suffix}"]
    }
  }

  statement {
    sid       = "EncryptAlerts"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey"]
    resources = [aws_kms_key.alerts.arn]

    condition {
      test     = "StringEquals"
      variable = "kms:ViaService"
      values   = ["sns.${local._region}.${local._suffix}"]
    }
  }

  # ListSubscriptionsByTopic: whether anybody has confirmed one.
  statement {
    sid       = "Alert"
    actions   = ["sns:ListSubscriptionsByTopic", "sns:Publish"]
    resources = [local._topic_arn]
  }

  statement {
    sid       = "Measure"
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "cloudwatch:namespace"
      values   = [local._namespace]
    }
  }

  statement {
    sid = "LeaveInOrder"
    actions = [
      "autoscaling:CompleteLifecycleAction",
      "autoscaling:RecordLifecycleActionHeartbeat",
      "autoscaling:SetInstanceProtection",
    ]
    resources = ["arn:${local._partition}:autoscaling:${local._region}:${local._account}:autoScalingGroup:*:autoScalingGroupName/${local._group_name}"]
  }

  # These two know no resources.
  statement {
    sid       = "SeeWhetherItLeaves"
    actions   = ["autoscaling:DescribeAutoScalingInstances", "autoscaling:DescribeLifecycleHooks"]
    resources = ["*"]
  }

  # What a Session Manager session needs, and nothing of the rest of AmazonSSMManagedInstanceCore.
  statement {
    sid = "SessionManager"
    actions = [
      "ec2messages:AcknowledgeMessage",
      "ec2messages:DeleteMessage",
      "ec2messages:FailMessage",
      "ec2messages:GetEndpoint",
      "ec2messages:GetMessages",
      "ec2messages:SendReply",
      "ssm:UpdateInstanceInformation",
      "ssmmessages:CreateControlChannel",
      "ssmmessages:CreateDataChannel",
      "ssmmessages:OpenControlChannel",
      "ssmmessages:OpenDataChannel",
    ]
    resources = ["*"]
  }
}
