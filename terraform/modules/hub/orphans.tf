# Spool volumes that outlived their instance. AWS has no metric of unattached volumes: a state machine counts them each hour. It has no code.
resource "aws_sfn_state_machine" "orphans" {
  #checkov:skip=CKV_AWS_284: two calls without data need no tracing
  #checkov:skip=CKV_AWS_285: it handles no data; its result is a metric
  name     = "${var.name}-orphans"
  role_arn = aws_iam_role.orphans.arn
  tags     = local._tags

  definition = jsonencode({
    Comment = "Counts the spool volumes that no instance has"
    StartAt = "Find"
    States = {
      Find = {
        Type     = "Task"
        Resource = "arn:${local._partition}:states:::aws-sdk:ec2:describeVolumes"
        Parameters = {
          Filters = [
            { Name = "tag:tapfleet:spool", Values = [local._group_name] },
            { Name = "status", Values = ["available"] },
          ]
        }
        ResultSelector = { "Count.$" = "States.ArrayLength($.Volumes)" }
        Next           = "Publish"
      }
      Publish = {
        Type     = "Task"
        Resource = "arn:${local._partition}:states:::aws-sdk:cloudwatch:putMetricData"
        Parameters = {
          Namespace = local._namespace
          MetricData = [{
            MetricName = local._metrics.orphans
            Dimensions = [{ Name = "AutoScalingGroupName", Value = local._group_name }]
            "Value.$"  = "$.Count"
          }]
        }
        End = true
      }
    }
  })

  depends_on = [aws_iam_role_policy.orphans]
}

resource "aws_cloudwatch_event_rule" "orphans" {
  name                = "${var.name}-orphans"
  description         = "Looks for spool volumes without an instance"
  schedule_expression = "rate(1 hour)"
  tags                = local._tags
}

resource "aws_cloudwatch_event_target" "orphans" {
  rule     = aws_cloudwatch_event_rule.orphans.name
  arn      = aws_sfn_state_machine.orphans.arn
  role_arn = aws_iam_role.orphans_schedule.arn
}

resource "aws_iam_role" "orphans" {
  name                 = "${var.name}-orphans-${local._region}"
  description          = "Counts the spool volumes of ${var.name} that no instance has"
  assume_role_policy   = data.aws_iam_policy_document.assumed_by["states"].json
  permissions_boundary = var.permissions_boundary_arn
  tags                 = local._tags
}

resource "aws_iam_role_policy" "orphans" {
  name   = "count"
  role   = aws_iam_role.orphans.id
  policy = data.aws_iam_policy_document.orphans.json
}

data "aws_iam_policy_document" "orphans" {
  # Knows no resources.
  statement {
    sid       = "Find"
    actions   = ["ec2:DescribeVolumes"]
    resources = ["*"]
  }

  statement {
    sid       = "Publish"
    actions   = ["cloudwatch:PutMetricData"]
    resources = ["*"]

    condition {
      test     = "StringEquals"
      variable = "cloudwatch:namespace"
      values   = [local._namespace]
    }
  }
}

resource "aws_iam_role" "orphans_schedule" {
  name                 = "${var.name}-orphans-rule-${local._region}"
  description          = "Starts the count of spool volumes of ${var.name}"
  assume_role_policy   = data.aws_iam_policy_document.assumed_by["events"].json
  permissions_boundary = var.permissions_boundary_arn
  tags                 = local._tags
}

resource "aws_iam_role_policy" "orphans_schedule" {
  name   = "start"
  role   = aws_iam_role.orphans_schedule.id
  policy = data.aws_iam_policy_document.orphans_schedule.json
}

data "aws_iam_policy_document" "orphans_schedule" {
  statement {
    sid       = "Start"
    actions   = ["states:StartExecution"]
    resources = [aws_sfn_state_machine.orphans.arn]
  }
}
