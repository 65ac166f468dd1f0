# What no agent can say itself: that it is dead, that nothing arrives, that the mail does not go out.
locals {
  # As agent/src/observe/cloudwatch.rs names them.
  _metrics = {
    heartbeat = "Heartbeat"
    frames    = "Frames"
    bytes     = "Bytes"
    verified  = "BytesVerified"
    spool     = "SpoolBytes"
    age       = "OldestUnverified"
    orphans   = "OrphanVolumes"
  }

  _drops = ["DroppedKernel", "DroppedNic", "DroppedEc2", "DroppedMalformed", "DroppedFiltered", "DroppedPolicy"]

  _group_dimension = { AutoScalingGroupName = local._group_name }

  # Two windows and a quarter of an hour for the upload, in whole hours; CloudWatch looks back a day at most.
  _rotate_seconds  = try(tonumber(var.settings.record.rotate_seconds), 900)
  _arrival_seconds = min(86400, 3600 * ceil((2 * local._rotate_seconds + 900) / 3600))
}

resource "aws_cloudwatch_metric_alarm" "silent_agents" {
  count = local._balanced ? 1 : 0

  alarm_name          = "${var.name}-silent-agents"
  alarm_description   = "Instances of ${local._group_name} are in service whose agent says nothing for fifteen minutes: what they should capture may be lost. Look at `journalctl -u tapfleetd` of the instances through Session Manager."
  comparison_operator = "GreaterThanThreshold"
  # An agent sends one heartbeat a minute; three quarters of an agent are more than the jitter of a period.
  threshold           = 0.75
  evaluation_periods  = 3
  datapoints_to_alarm = 3
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local._tags

  metric_query {
    id          = "silent"
    label       = "Instances without a heartbeat"
    expression  = "in_service - FILL(heartbeats, 0) / 5"
    return_data = true
  }

  metric_query {
    id = "in_service"

    metric {
      namespace   = "AWS/AutoScaling"
      metric_name = "GroupInServiceInstances"
      dimensions  = local._group_dimension
      period      = 300
      stat        = "Average"
    }
  }

  metric_query {
    id = "heartbeats"

    metric {
      namespace   = local._namespace
      metric_name = local._metrics.heartbeat
      dimensions  = local._group_dimension
      period      = 300
      stat        = "Sum"
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "nothing_arrives" {
  count = local._balanced ? 1 : 0

  alarm_name          = "${var.name}-nothing-arrives"
  alarm_description   = "${local._group_name} captures packets, and for ${local._arrival_seconds / 3600} h nothing of it was confirmed by S3: captures pile up on the instances. Look at `tapfleetd status`, the bucket's policy and its KMS key."
  comparison_operator = "GreaterThanOrEqualToThreshold"
  threshold           = 1
  evaluation_periods  = 1
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local._tags

  metric_query {
    id          = "stuck"
    label       = "Captured, and nothing verified"
    expression  = "IF(captured > 0 AND FILL(verified, 0) == 0, 1, 0)"
    return_data = true
  }

  metric_query {
    id = "captured"

    metric {
      namespace   = local._namespace
      metric_name = local._metrics.bytes
      dimensions  = local._group_dimension
      period      = local._arrival_seconds
      stat        = "Sum"
    }
  }

  metric_query {
    id = "verified"

    metric {
      namespace   = local._namespace
      metric_name = local._metrics.verified
      dimensions  = local._group_dimension
      period      = local._arrival_seconds
      stat        = "Sum"
    }
  }
}

resource "aws_cloudwatch_metric_alarm" "no_healthy_host" {
  count = local._balanced ? 1 : 0

  alarm_name          = "${var.name}-no-healthy-host"
  alarm_description   = "The load balancer ${aws_lb.gateway[0].name} has no healthy agent: mirrored packets go to a random instance or nowhere. Look at the activity of ${local._group_name} and at /healthz of its instances."
  namespace           = "AWS/GatewayELB"
  metric_name         = "HealthyHostCount"
  statistic           = "Maximum"
  period              = 60
  evaluation_periods  = 3
  comparison_operator = "LessThanThreshold"
  threshold           = 1
  treat_missing_data  = "breaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local._tags

  dimensions = {
    LoadBalancer = aws_lb.gateway[0].arn_suffix
    TargetGroup  = aws_lb_target_group.agents[0].arn_suffix
  }
}

resource "aws_cloudwatch_metric_alarm" "failed_notifications" {
  alarm_name          = "${var.name}-failed-notifications"
  alarm_description   = "Mails of the topic ${local._topic_name} could not be delivered. This mail may be the only one of several that arrives: look at the subscriptions."
  namespace           = "AWS/SNS"
  metric_name         = "NumberOfNotificationsFailed"
  dimensions          = { TopicName = local._topic_name }
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local._tags
}

resource "aws_cloudwatch_metric_alarm" "orphan_volumes" {
  alarm_name          = "${var.name}-orphan-volumes"
  alarm_description   = "Spool volumes with the tag tapfleet:spool = ${local._group_name} have no instance. They may hold captures that S3 has not: attach each, mount it, run `tapfleetd spool upload`, then delete it. They cost money while they are there."
  namespace           = local._namespace
  metric_name         = local._metrics.orphans
  dimensions          = local._group_dimension
  statistic           = "Maximum"
  period              = 3600
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "ignore"
  alarm_actions       = [aws_sns_topic.alerts.arn]
  ok_actions          = [aws_sns_topic.alerts.arn]
  tags                = local._tags
}

# A fleet that cannot grow, or an instance that cannot go, mails at once: no alarm waits for a metric.
resource "aws_cloudwatch_event_rule" "failed_scaling" {
  count = local._balanced ? 1 : 0

  name        = "${var.name}-failed-scaling"
  description = "${local._group_name} could not launch or terminate an instance"
  tags        = local._tags

  event_pattern = jsonencode({
    source      = ["aws.autoscaling"]
    detail-type = ["EC2 Instance Launch Unsuccessful", "EC2 Instance Terminate Unsuccessful"]
    detail      = { AutoScalingGroupName = [local._group_name] }
  })
}

resource "aws_cloudwatch_event_target" "failed_scaling" {
  count = local._balanced ? 1 : 0

  rule = aws_cloudwatch_event_rule.failed_scaling[0].name
  arn  = aws_sns_topic.alerts.arn
}
