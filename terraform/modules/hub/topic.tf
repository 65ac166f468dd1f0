locals {
  # Spelled, not taken from the resource: the topic's key names it before it is there.
  _topic_name = "${var.name}-alerts"
  _topic_arn  = "arn:${local._partition}:sns:${local._region}:${local._account}:${local._topic_name}"
}

resource "aws_sns_topic" "alerts" {
  name              = local._topic_name
  kms_master_key_id = aws_kms_key.alerts.arn
  tags              = local._tags
}

resource "aws_sns_topic_subscription" "email" {
  for_each = toset(var.alert.sns_notify_emails)

  topic_arn = aws_sns_topic.alerts.arn
  protocol  = "email"
  endpoint  = each.value
}

resource "aws_sns_topic_policy" "alerts" {
  arn    = aws_sns_topic.alerts.arn
  policy = data.aws_iam_policy_document.alerts_topic.json

  # AWS refuses a policy that names a role it does not know.
  depends_on = [aws_iam_role.agent]
}

data "aws_iam_policy_document" "alerts_topic" {
  statement {
    sid       = "AgentsPublish"
    actions   = ["sns:Publish"]
    resources = [local._topic_arn]

    principals {
      type        = "AWS"
      identifiers = [local._role_arn]
    }
  }

  statement {
    sid       = "AlarmsAndEventsPublish"
    actions   = ["sns:Publish"]
    resources = [local._topic_arn]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com", "events.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "aws:SourceAccount"
      values   = distinct(concat([local._account], var.alert.alarm_accounts))
    }
  }

  statement {
    sid       = "NothingInTheClear"
    effect    = "Deny"
    actions   = ["sns:Publish"]
    resources = [local._topic_arn]

    principals {
      type        = "AWS"
      identifiers = ["*"]
    }

    condition {
      test     = "Bool"
      variable = "aws:SecureTransport"
      values   = ["false"]
    }
  }
}
