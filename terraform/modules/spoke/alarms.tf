# In the spoke, for the metric is there: what an endpoint dropped never reaches an agent that could count it.
resource "aws_cloudwatch_metric_alarm" "endpoint_drops" {
  for_each = var.alarm == null ? {} : aws_vpc_endpoint.captures

  alarm_name          = "${var.name}-endpoint-drops-${each.key}"
  alarm_description   = "The load balancer endpoint ${each.value.id} in ${each.key} drops mirrored packets: its throughput of 10 Gb/s a zone grows with the load up to 100 Gb/s; packets above 8500 bytes are dropped always. What it dropped is in no capture."
  namespace           = "AWS/PrivateLinkEndpoints"
  metric_name         = "PacketsDropped"
  statistic           = "Sum"
  period              = 300
  evaluation_periods  = 1
  comparison_operator = "GreaterThanThreshold"
  threshold           = 0
  treat_missing_data  = "notBreaching"
  alarm_actions       = [var.alarm.topic_arn]
  ok_actions          = [var.alarm.topic_arn]
  tags                = local._tags

  dimensions = {
    "Endpoint Type"   = "GatewayLoadBalancer"
    "Service Name"    = var.gwlb_endpoint_service_name
    "VPC Endpoint Id" = each.value.id
    "VPC Id"          = var.vpc_id
  }
}
