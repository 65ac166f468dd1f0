output "gwlb_endpoint_service_name" {
  description = "Name of the endpoint service, for the spokes; null without a load balancer."
  value       = one(aws_vpc_endpoint_service.captures[*].service_name)

  # An endpoint that is made before its principal is allowed, or before the listener is there, fails.
  depends_on = [aws_vpc_endpoint_service_allowed_principal.spoke, aws_lb_listener.gateway]
}

output "bucket" {
  description = "Name and ARN of the bucket of captures, and the ARN of its KMS key."
  value       = { name = aws_s3_bucket.captures.id, arn = aws_s3_bucket.captures.arn, kms_key_arn = aws_kms_key.captures.arn }
}

output "topic_arn" {
  description = "ARN of the topic that troubles and alarms go to; spokes send their alarms there, too."
  value       = aws_sns_topic.alerts.arn

  depends_on = [aws_sns_topic_policy.alerts]
}

output "vpc_id" {
  description = "Id of the VPC of the fleet."
  value       = local._vpc_id
}

output "subnet_ids" {
  description = "Ids of the agents' subnets, by zone name."
  value       = local._subnet_ids
}

output "agent" {
  description = "What an instance needs to be an agent: role, launch template (image, disks, role, settings) and its version, security group; and the text of its settings."
  value = {
    role_arn                = aws_iam_role.agent.arn
    security_group_id       = aws_security_group.agents.id
    launch_template_id      = aws_launch_template.agent.id
    launch_template_version = aws_launch_template.agent.latest_version
    settings                = module.user_data.settings
  }

  depends_on = [aws_iam_role_policy.agent, aws_s3_bucket_policy.captures]
}

output "group_name" {
  description = "Name of the Auto Scaling group; null without a load balancer."
  value       = one(aws_autoscaling_group.agents[*].name)
}

output "spool_outage_hours" {
  description = "Hours of an S3 outage that one instance's spool volume bridges at fleet.expected_gbps."
  value       = local._spool_outage_hours
}
