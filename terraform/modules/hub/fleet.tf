locals {
  # Spelled, not taken from the resource: user data is needed before the group is there.
  _group_name = "${var.name}-agents"
  _namespace  = "tapfleet"
  _hook_name  = "${var.name}-drain"

  # Of the volume 8 % stay free for the file system and for journals.
  _spool_max_gib      = floor(var.spool.size_gib * 0.92)
  _spool_outage_hours = local._spool_max_gib * 8.589934592 / var.fleet.expected_gbps / 3600

  _fixed_settings = {
    capture = {
      "ports.geneve" = local._geneve_port
      "ports.vxlan"  = local._vxlan_port
      # Only the load balancer, and those who may send straight to us, can put packets into the captures.
      outer_sources = distinct(concat(local._balanced ? values(local._subnet_cidrs) : [], var.network.direct_sources))
    }
    spool = {
      dir       = "/var/lib/tapfleet/spool"
      max_bytes = "${local._spool_max_gib}GiB"
    }
    s3 = {
      bucket                = var.bucket.name
      key_prefix            = var.bucket.key_prefix
      region                = local._region
      expected_bucket_owner = local._account
    }
    alert   = { topic_arn = local._topic_arn }
    health  = { listen = "0.0.0.0:${local._health_port}" }
    metrics = { cloudwatch_namespace = local._namespace }
    # Without a load balancer there is no group, and the agent asks nobody about its lifecycle.
    instance = { group = local._balanced ? local._group_name : null }
  }
}

module "user_data" {
  source = "../user_data"

  name = var.name
  settings = {
    for section in setunion(keys(local._fixed_settings), keys(var.settings)) :
    section => merge(lookup(local._fixed_settings, section, {}), lookup(var.settings, section, {}))
  }
  environment = merge(
    var.endpoints.fips ? { AWS_USE_FIPS_ENDPOINT = "true" } : {},
    var.endpoints.dual_stack ? { AWS_USE_DUALSTACK_ENDPOINT = "true" } : {},
  )
}

resource "aws_launch_template" "agent" {
  name                   = "${var.name}-agent"
  description            = "Capture agent of ${var.name}"
  image_id               = var.fleet.ami_id
  instance_type          = var.fleet.instance_type
  user_data              = base64encode(module.user_data.user_data)
  update_default_version = true
  ebs_optimized          = true
  vpc_security_group_ids = [aws_security_group.agents.id]
  tags                   = local._tags

  iam_instance_profile {
    arn = aws_iam_instance_profile.agent.arn
  }

  # IMDSv2 only, and not from a container behind one more hop.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  monitoring {
    enabled = true
  }

  block_device_mappings {
    device_name = var.fleet.root_device

    ebs {
      encrypted             = true
      volume_type           = "gp3"
      volume_size           = var.fleet.root_gib
      delete_on_termination = true
    }
  }

  block_device_mappings {
    device_name = "/dev/sdf"

    ebs {
      encrypted             = true
      volume_type           = "gp3"
      volume_size           = var.spool.size_gib
      iops                  = var.spool.iops
      throughput            = var.spool.throughput_mibs
      delete_on_termination = var.spool.delete_on_termination
    }
  }

  tag_specifications {
    resource_type = "instance"
    tags          = merge(local._tags, { Name = "${var.name}-agent" })
  }

  # How a volume that outlived its instance is found again.
  tag_specifications {
    resource_type = "volume"
    tags          = merge(local._tags, { Name = "${var.name}-agent", "tapfleet:spool" = local._group_name })
  }
}

resource "aws_autoscaling_group" "agents" {
  count = local._balanced ? 1 : 0

  name                      = local._group_name
  min_size                  = var.fleet.min_size
  max_size                  = var.fleet.max_size
  vpc_zone_identifier       = values(local._subnet_ids)
  target_group_arns         = [aws_lb_target_group.agents[0].arn]
  health_check_type         = "ELB"
  health_check_grace_period = var.fleet.warm_up_seconds
  default_instance_warmup   = var.fleet.warm_up_seconds
  termination_policies      = ["OldestLaunchTemplate", "OldestInstance"]
  # Whether instances come up is what the alarms say; a plan must not hang on it.
  wait_for_capacity_timeout = "0"
  metrics_granularity       = "1Minute"
  enabled_metrics           = ["GroupDesiredCapacity", "GroupInServiceInstances", "GroupTerminatingInstances"]

  launch_template {
    id      = aws_launch_template.agent.id
    version = aws_launch_template.agent.latest_version
  }

  # A new instance first, then the old one goes; an agent that protects itself has segments to send and is waited for.
  instance_maintenance_policy {
    min_healthy_percentage = 100
    max_healthy_percentage = 200
  }

  instance_refresh {
    strategy = "Rolling"

    preferences {
      min_healthy_percentage       = 100
      max_healthy_percentage       = 200
      instance_warmup              = var.fleet.warm_up_seconds
      scale_in_protected_instances = "Wait"
    }
  }

  dynamic "tag" {
    for_each = merge(local._tags, { Name = "${var.name}-agent" })

    content {
      key                 = tag.key
      value               = tag.value
      propagate_at_launch = false
    }
  }

  depends_on = [aws_iam_role_policy.agent, aws_vpc_endpoint.bucket, aws_vpc_endpoint.interface, aws_s3_bucket_policy.captures]
}

# A leaving instance waits here until its last window is in S3. The agent sends heartbeats; one that is dead holds the
# instance for half an hour. 100 heartbeats are beyond the 48 hours that Auto Scaling allows at most.
resource "aws_autoscaling_lifecycle_hook" "drain" {
  count = local._balanced ? 1 : 0

  name                   = local._hook_name
  autoscaling_group_name = aws_autoscaling_group.agents[0].name
  lifecycle_transition   = "autoscaling:EC2_INSTANCE_TERMINATING"
  heartbeat_timeout      = 1800
  default_result         = "ABANDON"
}

# Bytes per second and instance, as the agents count them, against 60 % of what one is expected to take.
resource "aws_autoscaling_policy" "traffic" {
  count = local._balanced ? 1 : 0

  name                   = "${var.name}-traffic"
  autoscaling_group_name = aws_autoscaling_group.agents[0].name
  policy_type            = "TargetTrackingScaling"

  target_tracking_configuration {
    target_value = var.fleet.expected_gbps * 1000000000 / 8 * 0.6

    customized_metric_specification {
      metrics {
        id          = "bytes"
        return_data = false

        metric_stat {
          stat = "Sum"

          metric {
            namespace   = local._namespace
            metric_name = local._metrics.bytes

            dimensions {
              name  = "AutoScalingGroupName"
              value = local._group_name
            }
          }
        }
      }

      metrics {
        id          = "instances"
        return_data = false

        metric_stat {
          stat = "Average"

          metric {
            namespace   = "AWS/AutoScaling"
            metric_name = "GroupInServiceInstances"

            dimensions {
              name  = "AutoScalingGroupName"
              value = local._group_name
            }
          }
        }
      }

      metrics {
        id          = "rate"
        label       = "Bytes per second and instance"
        expression  = "bytes / 60 / instances"
        return_data = true
      }
    }
  }
}
