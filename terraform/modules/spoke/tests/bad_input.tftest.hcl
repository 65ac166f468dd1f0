# Every wrong value is refused while planning, with a sentence that says what is allowed.
mock_provider "aws" {
  source = "../../mocks"
}

variables {
  vpc_id                     = "vpc-0123456789abcdef0"
  gwlb_endpoint_service_name = "com.amazonaws.vpce.eu-central-1.vpce-svc-0123456789abcdef0"
  subnet_ids                 = { "eu-central-1a" = "subnet-0123456789abcdef0", "eu-central-1b" = "subnet-0123456789abcdef1" }
}

run "more_than_ten_rules_are_refused" {
  command = plan

  variables {
    filter = { rules = [for port in range(11) : { direction = "ingress", protocol = 6, ports = { from = port, to = port } }] }
  }

  expect_failures = [var.filter]
}

run "a_direction_that_is_none_is_refused" {
  command = plan

  variables {
    filter = { rules = [{ direction = "both" }] }
  }

  expect_failures = [var.filter]
}

run "ports_without_a_protocol_that_has_some_are_refused" {
  command = plan

  variables {
    filter = {
      rules = [{ direction = "ingress", ports = { from = 80, to = 80 } }]
    }
  }

  expect_failures = [var.filter]
}

run "ports_in_the_wrong_order_are_refused" {
  command = plan

  variables {
    filter = {
      rules = [{ direction = "ingress", protocol = 6, ports = { from = 90, to = 80 } }]
    }
  }

  expect_failures = [var.filter]
}

run "a_rule_between_ipv4_and_ipv6_is_refused" {
  command = plan

  variables {
    filter = {
      rules = [{ direction = "ingress", source_cidr_block = "::/0" }]
    }
  }

  expect_failures = [var.filter]
}

run "a_protocol_beyond_255_is_refused" {
  command = plan

  variables {
    filter = {
      rules = [{ direction = "ingress", protocol = 256 }]
    }
  }

  expect_failures = [var.filter]
}

run "an_unknown_network_service_is_refused" {
  command = plan

  variables {
    filter = { network_services = ["dhcp"] }
  }

  expect_failures = [var.filter]
}

run "a_vni_of_more_than_24_bits_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a", virtual_network_id = 16777216 }
    }
  }

  expect_failures = [var.sessions]
}

run "a_session_number_of_zero_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a", session_number = 0 }
    }
  }

  expect_failures = [var.sessions]
}

run "a_session_number_beyond_the_last_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a", session_number = 32767 }
    }
  }

  expect_failures = [var.sessions]
}

run "a_packet_longer_than_the_endpoint_takes_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a", packet_length = 8447 }
    }
  }

  expect_failures = [var.sessions]
}

run "a_packet_longer_than_a_network_load_balancer_takes_is_refused" {
  command = plan

  variables {
    gwlb_endpoint_service_name = null
    direct_target              = { agent_addresses = ["10.0.0.10"] }
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a", packet_length = 8501 }
    }
  }

  expect_failures = [var.sessions]
}

run "a_packet_longer_than_an_interface_takes_is_refused" {
  command = plan

  variables {
    gwlb_endpoint_service_name = null
    direct_target              = { network_interface_id = "eni-0123456789abcdef1" }
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a", packet_length = 8948 }
    }
  }

  expect_failures = [var.sessions]
}

run "a_zone_without_an_endpoint_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1c" }
    }
  }

  expect_failures = [var.sessions]
}

run "a_zone_left_out_though_there_are_two_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "eni-0123456789abcdef0" }
    }
  }

  expect_failures = [var.sessions]
}

run "two_sessions_of_an_interface_with_one_number_are_refused" {
  command = plan

  variables {
    sessions = {
      web   = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1a" }
      again = { network_interface_id = "eni-0123456789abcdef0", zone = "eu-central-1b" }
    }
  }

  expect_failures = [var.sessions]
}

run "two_ways_at_once_are_refused" {
  command = plan

  variables {
    direct_target = { network_interface_id = "eni-0123456789abcdef1" }
  }

  expect_failures = [var.gwlb_endpoint_service_name]
}

run "a_service_that_is_none_is_refused" {
  command = plan

  variables {
    gwlb_endpoint_service_name = "hub"
  }

  expect_failures = [var.gwlb_endpoint_service_name]
}

run "a_direct_target_that_is_two_is_refused" {
  command = plan

  variables {
    gwlb_endpoint_service_name = null
    direct_target              = { network_interface_id = "eni-0123456789abcdef1", agent_addresses = ["10.0.0.10"] }

  }

  expect_failures = [var.direct_target]
}

run "an_address_that_is_none_is_refused" {
  command = plan

  variables {
    gwlb_endpoint_service_name = null
    direct_target              = { agent_addresses = ["agent"] }

  }

  expect_failures = [var.direct_target]
}

run "no_subnet_is_refused" {
  command = plan

  variables {
    subnet_ids = {}
  }

  expect_failures = [var.subnet_ids]
}

run "a_zone_that_is_none_is_refused" {
  command = plan

  variables {
    subnet_ids = { first = "subnet-0123456789abcdef0" }
  }

  expect_failures = [var.subnet_ids]
}

run "a_vpc_that_is_none_is_refused" {
  command = plan

  variables {
    vpc_id = "main"
  }

  expect_failures = [var.vpc_id]
}

run "a_topic_that_is_none_is_refused" {
  command = plan

  variables {
    alarm = { topic_arn = "alerts" }
  }

  expect_failures = [var.alarm]
}

run "a_name_too_long_for_a_load_balancer_is_refused" {
  command = plan

  variables {
    name = "a-name-that-is-much-too-long"
  }

  expect_failures = [var.name]
}

run "a_reserved_tag_is_refused" {
  command = plan

  variables {
    tags = { "tapfleet:spoke" = "mine" }
  }

  expect_failures = [var.tags]
}

run "an_interface_that_is_none_is_refused" {
  command = plan

  variables {
    sessions = {
      web = { network_interface_id = "i-0123456789abcdef0", zone = "eu-central-1a" }
    }
  }

  expect_failures = [var.sessions]
}

run "a_target_that_is_no_interface_is_refused" {
  command = plan

  variables {
    gwlb_endpoint_service_name = null
    direct_target              = { network_interface_id = "i-0123456789abcdef0" }
  }

  expect_failures = [var.direct_target]
}
