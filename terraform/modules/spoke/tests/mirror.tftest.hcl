# Everything made, by a mocked provider: what is mirrored, and where it goes.
mock_provider "aws" {
  source = "../../mocks"
}

variables {
  vpc_id                     = "vpc-0123456789abcdef0"
  gwlb_endpoint_service_name = "com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0"
  subnet_ids                 = { "eu-central-1a" = "subnet-0123456789abcdef0", "eu-central-1b" = "subnet-0123456789abcdef1" }
  alarm                      = { topic_arn = "arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts" }
}

run "everything_is_mirrored_by_default_in_both_directions_with_ipv6_and_dns" {
  assert {
    condition = toset([
      for rule in values(aws_ec2_traffic_mirror_filter_rule.source) :
      "${rule.traffic_direction} ${rule.rule_action} ${coalesce(rule.protocol, 0)} ${rule.source_cidr_block} ${rule.destination_cidr_block}"
      ]) == toset([
      "ingress accept 0 0.0.0.0/0 0.0.0.0/0", "egress accept 0 0.0.0.0/0 0.0.0.0/0",
      "ingress accept 0 ::/0 ::/0", "egress accept 0 ::/0 ::/0",
    ])
    error_message = "Not everything is mirrored."
  }

  assert {
    condition     = aws_ec2_traffic_mirror_filter.sources.network_services == toset(["amazon-dns"])
    error_message = "DNS is not mirrored."
  }
}

run "a_session_goes_to_the_endpoint_of_its_zone" {
  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1b", virtual_network_id = 7, packet_length = 8446 }
      db  = { network_interface_id = "eni-0123456789abcdef1", zone = "eu-central-1a", session_number = 3 }
    }
  }

  assert {
    condition = (
      aws_ec2_traffic_mirror_session.source["web"].traffic_mirror_target_id == aws_ec2_traffic_mirror_target.endpoint["eu-central-1b"].id &&
      aws_ec2_traffic_mirror_session.source["db"].traffic_mirror_target_id == aws_ec2_traffic_mirror_target.endpoint["eu-central-1a"].id
    )
    error_message = "Mirrored packets would leave their zone."
  }

  assert {
    condition = alltrue([
      for zone, target in aws_ec2_traffic_mirror_target.endpoint : target.gateway_load_balancer_endpoint_id == aws_vpc_endpoint.captures[zone].id
    ]) && toset(keys(output.target_ids)) == toset(["eu-central-1a", "eu-central-1b"])
    error_message = "A target is not the endpoint of its zone."
  }

  assert {
    condition     = aws_ec2_traffic_mirror_session.source["web"].virtual_network_id == 7 && aws_ec2_traffic_mirror_session.source["db"].session_number == 3 && output.sessions["web"].network_interface_id == "eni-0123456789abcdef0"
    error_message = "A session is not what was asked for."
  }

  assert {
    condition = alltrue([
      for zone, alarm in aws_cloudwatch_metric_alarm.endpoint_drops :
      alarm.metric_name == "PacketsDropped" && alarm.dimensions["VPC Endpoint Id"] == aws_vpc_endpoint.captures[zone].id &&
      alarm.alarm_actions == toset(["arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts"])
    ]) && length(aws_cloudwatch_metric_alarm.endpoint_drops) == 2
    error_message = "What an endpoint drops would go unnoticed."
  }
}

run "rules_keep_their_order_and_ports_their_side" {
  variables {
    filter = {
      rules = [
        { direction = "ingress", action = "reject", protocol = 6, ports = { from = 22, to = 22 } },
        { direction = "egress", protocol = 17, peer_ports = { from = 53, to = 53 }, source_cidr_block = "10.0.0.0/8", destination_cidr_block = "0.0.0.0/0" },
      ]
      network_services = []
    }
  }

  assert {
    condition = [
      for number in ["10", "20"] : [
        aws_ec2_traffic_mirror_filter_rule.source[number].rule_number, aws_ec2_traffic_mirror_filter_rule.source[number].rule_action,
        [for ports in aws_ec2_traffic_mirror_filter_rule.source[number].destination_port_range : ports.from_port],
        [for ports in aws_ec2_traffic_mirror_filter_rule.source[number].source_port_range : ports.from_port],
      ]
    ] == [[10, "reject", [22], []], [20, "accept", [], [53]]]
    error_message = "The rules are not those that were asked for."
  }
}

run "one_interface_can_be_the_target" {
  variables {
    gwlb_endpoint_service_name = null
    subnet_ids                 = {}
    direct_target              = { network_interface_id = "eni-0123456789abcdef9" }
    sessions                   = { web = { network_interface_id = "eni-0123456789abcdef0", packet_length = 8947 } }
  }

  assert {
    condition     = aws_ec2_traffic_mirror_target.direct[0].network_interface_id == "eni-0123456789abcdef9" && aws_ec2_traffic_mirror_session.source["web"].traffic_mirror_target_id == aws_ec2_traffic_mirror_target.direct[0].id
    error_message = "The session does not go to the interface."
  }

  assert {
    condition     = length(aws_vpc_endpoint.captures) + length(aws_lb.vxlan) == 0
    error_message = "There is an endpoint or a load balancer that nobody asked for."
  }
}

run "a_network_load_balancer_listens_on_udp_4789" {
  variables {
    gwlb_endpoint_service_name = null
    direct_target              = { agent_addresses = ["10.0.0.10", "10.0.0.11"] }
  }

  assert {
    condition     = aws_lb_listener.vxlan[0].protocol == "UDP" && aws_lb_listener.vxlan[0].port == 4789 && aws_lb.vxlan[0].enable_cross_zone_load_balancing
    error_message = "Mirroring would fail silently."
  }

  assert {
    condition     = one(aws_lb_target_group.vxlan[0].health_check).path == "/healthz" && one(aws_lb_target_group.vxlan[0].health_check).port == "8080"
    error_message = "The health check does not ask the agent."
  }

  assert {
    condition     = toset([for agent in values(aws_lb_target_group_attachment.agent) : "${agent.target_id}:${agent.port}"]) == toset(["10.0.0.10:4789", "10.0.0.11:4789"])
    error_message = "An agent is not a target."
  }
}
