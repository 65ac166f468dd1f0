# Two keys: CloudWatch and EventBridge must be able to use the topic's, and have no business with the captures'.
resource "aws_kms_key" "captures" {
  description             = "Captures of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 30
  policy                  = data.aws_iam_policy_document.captures_key.json
  tags                    = local._tags
}

resource "aws_kms_alias" "captures" {
  name          = "alias/${var.name}-captures"
  target_key_id = aws_kms_key.captures.key_id
}

resource "aws_kms_key" "alerts" {
  description             = "Alerts of ${var.name}"
  enable_key_rotation     = true
  deletion_window_in_days = 7
  policy                  = data.aws_iam_policy_document.alerts_key.json
  tags                    = local._tags
}

resource "aws_kms_alias" "alerts" {
  name          = "alias/${var.name}-alerts"
  target_key_id = aws_kms_key.alerts.key_id
}

data "aws_iam_policy_document" "captures_key" {
  #checkov:skip=CKV_AWS_109: in a key policy * is the key itself, and the account must be able to manage it
  #checkov:skip=CKV_AWS_111: in a key policy * is the key itself
  #checkov:skip=CKV_AWS_356: in a key policy * is the key itself
  statement {
    sid       = "AccountDecidesByIam"
    actions   = ["kms:*"]
    resources = ["*"]

    principals {
      type        = "AWS"
      identifiers = ["arn:${local._partition}:iam::${local._account}:root"]
    }
  }
}

data "aws_iam_policy_document" "alerts_key" {
  source_policy_documents = [data.aws_iam_policy_document.captures_key.json]

  # KMS Developer Guide "Compatibility between event sources from AWS services and encrypted topics" of SNS: without it alarms are lost silently.
  statement {
    sid       = "AlarmsAndEventsReachTheTopic"
    actions   = ["kms:Decrypt", "kms:GenerateDataKey*"]
    resources = ["*"]

    principals {
      type        = "Service"
      identifiers = ["cloudwatch.amazonaws.com", "events.amazonaws.com"]
    }

    condition {
      test     = "StringEquals"
      variable = "kms:EncryptionContext:aws:sns:topicArn"
      values   = [local._topic_arn]
    }
  }
}
