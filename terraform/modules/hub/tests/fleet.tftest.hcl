# Everything made, by a mocked provider: what depends on what holds together, and the numbers that the agent relies on.
mock_provider "aws" {
  source = "../../mocks"
}

variables {
  network = {
    cidr_block = "10.0.0.0/24"
    subnets    = { "eu-central-1a" = "10.0.0.0/26", "eu-central-1b" = "10.0.0.64/26" }
  }
  fleet            = { ami_id = "ami-0123456789abcdef0", expected_gbps = 2 }
  spool            = { size_gib = 1000 }
  endpoint_service = { allowed_principals = ["arn:aws:iam::222222222222:root"] }
  bucket           = { name = "captures-of-a-test" }
  alert            = { sns_notify_emails = ["ops@example.com"] }
}

run "a_dead_agent_gets_no_packets_and_is_replaced" {
  assert {
    condition = (
      one(aws_lb_target_group.agents[0].health_check).protocol == "HTTP" && one(aws_lb_target_group.agents[0].health_check).port == "8080" &&
      one(aws_lb_target_group.agents[0].health_check).path == "/healthz" && one(aws_lb_target_group.agents[0].health_check).matcher == "200"
    )
    error_message = "The health check does not ask the agent."
  }

  assert {
    condition     = aws_lb_target_group.agents[0].protocol == "GENEVE" && aws_lb_target_group.agents[0].port == 6081
    error_message = "The target group does not speak GENEVE on 6081."
  }

  assert {
    condition     = one(aws_lb_target_group.agents[0].target_failover).on_unhealthy == "rebalance" && one(aws_lb_target_group.agents[0].target_failover).on_deregistration == "rebalance"
    error_message = "A dead instance would keep its flows."
  }

  assert {
    condition     = aws_autoscaling_group.agents[0].health_check_type == "ELB" && aws_autoscaling_group.agents[0].health_check_grace_period == 120
    error_message = "A dead agent would not be replaced."
  }

  assert {
    condition     = alltrue([for stickiness in aws_lb_target_group.agents[0].stickiness : !stickiness.enabled])
    error_message = "By default flows are told apart by five fields."
  }
}

run "a_leaving_instance_is_waited_for_and_its_spool_stays" {
  assert {
    condition = (
      aws_autoscaling_lifecycle_hook.drain[0].lifecycle_transition == "autoscaling:EC2_INSTANCE_TERMINATING" &&
      aws_autoscaling_lifecycle_hook.drain[0].default_result == "ABANDON" && aws_autoscaling_lifecycle_hook.drain[0].heartbeat_timeout * 100 >= 48 * 3600
    )
    error_message = "The hook does not let a drain take the 48 hours that Auto Scaling allows."
  }

  assert {
    condition     = aws_autoscaling_lifecycle_hook.drain[0].heartbeat_timeout > aws_lb_target_group.agents[0].deregistration_delay
    error_message = "The hook would end before the last old flow does."
  }

  assert {
    condition = [
      for disk in aws_launch_template.agent.block_device_mappings : [disk.device_name, one(disk.ebs).encrypted, one(disk.ebs).delete_on_termination]
    ] == [["/dev/xvda", "true", "true"], ["/dev/sdf", "true", "false"]]
    error_message = "The spool must be on an encrypted volume that outlives the instance."
  }

  assert {
    condition = anytrue([
      for specification in aws_launch_template.agent.tag_specifications :
      specification.resource_type == "volume" && try(specification.tags["tapfleet:spool"], "") == "tapfleet-agents"
    ])
    error_message = "A volume that stays behind cannot be found."
  }

  assert {
    # 920 GiB at 2 Gb/s.
    condition     = output.spool_outage_hours > 1.09 && output.spool_outage_hours < 1.1
    error_message = "spool_outage_hours is ${output.spool_outage_hours}."
  }
}

run "an_instance_has_imdsv2_only_no_key_and_the_settings_that_follow_from_the_rest" {
  variables {
    settings = { record = { format = "pcapng", schedule = ["Mon-Fri 08:00-18:00 Europe/Berlin"] }, capture = { threads = 4 } }
  }

  assert {
    condition     = one(aws_launch_template.agent.metadata_options).http_tokens == "required" && one(aws_launch_template.agent.metadata_options).http_put_response_hop_limit == 1
    error_message = "Instance metadata can be had without a token, or from a container."
  }

  assert {
    condition     = aws_launch_template.agent.key_name == null || aws_launch_template.agent.key_name == ""
    error_message = "There must be no SSH."
  }

  assert {
    condition = alltrue([
      for line in [
        "bucket = \"captures-of-a-test\"", "expected_bucket_owner = \"111111111111\"", "topic_arn = \"arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts\"",
        "listen = \"0.0.0.0:8080\"", "ports.geneve = 6081", "ports.vxlan = 4789", "outer_sources = [\"10.0.0.0/26\",\"10.0.0.64/26\"]", "max_bytes = \"920GiB\"",
        "group = \"tapfleet-agents\"", "format = \"pcapng\"", "schedule = [\"Mon-Fri 08:00-18:00 Europe/Berlin\"]", "threads = 4", "[capture]",
      ] : contains(split("\n", output.agent.settings), line)
    ])
    error_message = "The settings are not what follows from the variables:\n${output.agent.settings}"
  }

  assert {
    condition     = strcontains(base64decode(aws_launch_template.agent.user_data), base64encode(output.agent.settings))
    error_message = "The user data does not write the settings."
  }
}

run "only_the_tunnels_and_the_health_check_come_in" {
  assert {
    condition     = toset([for rule in values(aws_vpc_security_group_ingress_rule.geneve) : "${rule.ip_protocol} ${rule.from_port} ${rule.to_port} ${rule.cidr_ipv4}"]) == toset(["udp 6081 6081 10.0.0.0/26", "udp 6081 6081 10.0.0.64/26"])
    error_message = "GENEVE must come from the load balancer's subnets only."
  }

  assert {
    condition     = toset([for rule in values(aws_vpc_security_group_ingress_rule.health) : "${rule.ip_protocol} ${rule.from_port} ${rule.to_port} ${rule.cidr_ipv4}"]) == toset(["tcp 8080 8080 10.0.0.0/26", "tcp 8080 8080 10.0.0.64/26"])
    error_message = "Health checks must come from the load balancer's subnets only."
  }

  assert {
    condition     = length(aws_vpc_security_group_ingress_rule.vxlan) == 0
    error_message = "VXLAN is open though nobody sends straight to the agents."
  }

  assert {
    condition     = alltrue([for rule in concat(values(aws_vpc_security_group_egress_rule.endpoints), [aws_vpc_security_group_egress_rule.bucket]) : rule.from_port == 443 && rule.to_port == 443 && rule.cidr_ipv4 != "0.0.0.0/0"])
    error_message = "Agents may reach more than HTTPS of the endpoints."
  }
}

run "alarms_do_not_need_an_agent_that_lives" {
  assert {
    condition = alltrue([
      for alarm in [
        aws_cloudwatch_metric_alarm.silent_agents[0], aws_cloudwatch_metric_alarm.nothing_arrives[0], aws_cloudwatch_metric_alarm.no_healthy_host[0],
        aws_cloudwatch_metric_alarm.failed_notifications, aws_cloudwatch_metric_alarm.orphan_volumes,
      ] : alarm.alarm_actions == toset(["arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts"]) && alarm.ok_actions == alarm.alarm_actions
    ])
    error_message = "An alarm does not tell the topic when it begins and when it is over."
  }

  assert {
    # Heartbeats that are missing count as none.
    condition     = contains(aws_cloudwatch_metric_alarm.silent_agents[0].metric_query[*].expression, "in_service - FILL(heartbeats, 0) / 5")
    error_message = "Dead agents would go unnoticed."
  }

  assert {
    condition     = aws_cloudwatch_metric_alarm.no_healthy_host[0].treat_missing_data == "breaching" && aws_cloudwatch_metric_alarm.no_healthy_host[0].dimensions.TargetGroup == "targetgroup/tapfleet-agents/0"
    error_message = "A load balancer without targets would go unnoticed."
  }

  assert {
    condition     = contains(aws_cloudwatch_metric_alarm.nothing_arrives[0].metric_query[*].expression, "IF(captured > 0 AND FILL(verified, 0) == 0, 1, 0)")
    error_message = "Captures that do not arrive would go unnoticed."
  }
}

run "the_fleet_grows_at_sixty_percent_of_what_is_expected" {
  assert {
    condition     = one(aws_autoscaling_policy.traffic[0].target_tracking_configuration).target_value == 150000000
    error_message = "The target is not 60 % of 2 Gb/s in bytes per second."
  }
}

run "uploads_are_given_up_after_the_outage_and_expiry_is_a_choice" {
  assert {
    condition = flatten([
      for rule in aws_s3_bucket_lifecycle_configuration.captures.rule : [
        for uploads in rule.abort_incomplete_multipart_upload : uploads.days_after_initiation
      ]
    ]) == [7] && alltrue([for rule in aws_s3_bucket_lifecycle_configuration.captures.rule : length(rule.expiration) == 0])
    error_message = "By default captures must be kept, and uploads given up after seven days."
  }

  # Each minute's status is a version more, which nothing else would end.
  assert {
    condition = [
      for rule in aws_s3_bucket_lifecycle_configuration.captures.rule : one(rule.filter).prefix if length(rule.noncurrent_version_expiration) > 0
    ] == ["status/"]
    error_message = "Former versions of statuses, and by default of nothing else, must expire."
  }
}

run "object_lock_replication_and_access_logs_are_options" {
  variables {
    bucket = {
      name        = "captures-of-a-test"
      expire_days = 400
      object_lock = { mode = "GOVERNANCE", days = 90 }
      replication = { bucket_arn = "arn:aws:s3:::copies", kms_key_arn = "arn:aws:kms:eu-west-1:111111111111:key/1" }
      access_logs = { bucket = "logs" }
    }
    permissions_boundary_arn = "arn:aws:iam::111111111111:policy/boundary"
  }

  assert {
    condition     = aws_s3_bucket.captures.object_lock_enabled && one(one(aws_s3_bucket_object_lock_configuration.captures[0].rule).default_retention).days == 90
    error_message = "Object Lock is not on."
  }

  assert {
    condition     = one(one(aws_s3_bucket_replication_configuration.captures[0].rule).destination).bucket == "arn:aws:s3:::copies" && aws_s3_bucket_logging.captures[0].target_bucket == "logs"
    error_message = "Replication or access logs are not on."
  }

  assert {
    condition = alltrue([
      for role in [aws_iam_role.agent, aws_iam_role.replication[0], aws_iam_role.orphans, aws_iam_role.orphans_schedule] :
      role.permissions_boundary == "arn:aws:iam::111111111111:policy/boundary"
    ])
    error_message = "A role is without the boundary."
  }
}

run "an_existing_vpc_gets_nothing_but_endpoints_and_the_fleet" {
  variables {
    network = {
      existing = {
        vpc_id          = "vpc-0123456789abcdef0"
        subnet_ids      = { "eu-central-1a" = "subnet-0123456789abcdef0" }
        route_table_ids = ["rtb-0123456789abcdef0"]
      }
    }
  }

  assert {
    condition     = length(aws_vpc.hub) + length(aws_subnet.agents) + length(aws_route_table.agents) == 0
    error_message = "A network was made though there is one."
  }

  assert {
    condition     = aws_vpc_security_group_ingress_rule.geneve["eu-central-1a"].cidr_ipv4 == "10.0.0.0/26"
    error_message = "GENEVE must come from the existing subnet."
  }
}

run "a_subnet_of_another_zone_is_refused" {
  command = plan

  variables {
    network = {
      existing = {
        vpc_id          = "vpc-0123456789abcdef0"
        subnet_ids      = { "eu-central-1b" = "subnet-0123456789abcdef0" }
        route_table_ids = ["rtb-0123456789abcdef0"]
      }
    }
  }

  expect_failures = [data.aws_subnet.existing]
}

run "without_a_load_balancer_there_is_no_fleet_and_vxlan_may_come" {
  variables {
    load_balancer = null
    network = {
      cidr_block     = "10.0.0.0/24"
      subnets        = { "eu-central-1a" = "10.0.0.0/26" }
      direct_sources = ["10.0.0.0/24"]
    }
  }

  assert {
    condition     = length(aws_lb.gateway) + length(aws_autoscaling_group.agents) + length(aws_vpc_endpoint_service.captures) == 0 && output.gwlb_endpoint_service_name == null
    error_message = "There is a load balancer or a fleet."
  }

  assert {
    condition     = one(values(aws_vpc_security_group_ingress_rule.vxlan)).cidr_ipv4 == "10.0.0.0/24" && length(aws_vpc_security_group_ingress_rule.geneve) == 0
    error_message = "VXLAN must come from the direct sources, GENEVE from nobody."
  }

  assert {
    condition     = strcontains(output.agent.settings, "outer_sources = [\"10.0.0.0/24\"]") && !strcontains(output.agent.settings, "[instance]\ngroup")
    error_message = "The settings are not those of a single sensor:\n${output.agent.settings}"
  }
}
