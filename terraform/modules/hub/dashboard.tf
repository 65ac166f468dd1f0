locals {
  _widgets = [
    { title = "Agents", metrics = [
      ["AWS/AutoScaling", "GroupInServiceInstances", "AutoScalingGroupName", local._group_name, { stat = "Average" }],
      [local._namespace, local._metrics.heartbeat, "AutoScalingGroupName", local._group_name, { stat = "Sum" }],
    ] },
    { title = "Captured and verified, bytes", metrics = [
      [local._namespace, local._metrics.bytes, "AutoScalingGroupName", local._group_name, { stat = "Sum" }],
      [local._namespace, local._metrics.verified, "AutoScalingGroupName", local._group_name, { stat = "Sum" }],
    ] },
    { title = "Frames", metrics = [
      [local._namespace, local._metrics.frames, "AutoScalingGroupName", local._group_name, { stat = "Sum" }],
    ] },
    { title = "Drops by class", metrics = [
      for drop in local._drops : [local._namespace, drop, "AutoScalingGroupName", local._group_name, { stat = "Sum" }]
    ] },
    { title = "Spool, bytes and age of the oldest unverified segment", metrics = [
      [local._namespace, local._metrics.spool, "AutoScalingGroupName", local._group_name, { stat = "Sum" }],
      [local._namespace, local._metrics.age, "AutoScalingGroupName", local._group_name, { stat = "Maximum", yAxis = "right" }],
    ] },
    { title = "Volumes without an instance", metrics = [
      [local._namespace, local._metrics.orphans, "AutoScalingGroupName", local._group_name, { stat = "Maximum", period = 3600 }],
    ] },
  ]
}

resource "aws_cloudwatch_dashboard" "fleet" {
  dashboard_name = "${var.name}-${local._region}"

  dashboard_body = jsonencode({
    widgets = [
      for index, widget in local._widgets : {
        type   = "metric"
        x      = index % 2 * 12
        y      = floor(index / 2) * 6
        width  = 12
        height = 6
        properties = {
          title   = widget.title
          region  = local._region
          period  = 60
          metrics = widget.metrics
        }
      }
    ]
  })
}
