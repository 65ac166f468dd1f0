mock_provider "aws" {
  source = "../../mocks"
}

override_resource {
  target = aws_instance.sensor
  values = { primary_network_interface_id = "eni-0123456789abcdef9" }
}

# No two interfaces are the same one.
override_resource {
  target = module.sources.aws_instance.source["source-1"]
  values = { primary_network_interface_id = "eni-0123456789abcdef1" }
}

override_resource {
  target = module.sources.aws_instance.source["source-2"]
  values = { primary_network_interface_id = "eni-0123456789abcdef2" }
}

run "the_example_can_be_made_as_it_stands" {
  assert {
    condition     = toset(keys(output.sessions)) == toset(["source-1", "source-2"])
    error_message = "Each demo source must be mirrored."
  }
}

run "ping_alone_can_be_mirrored" {
  variables {
    mirror = "icmp"
  }

  assert {
    condition     = length(output.sessions) == 2
    error_message = "Each demo source must be mirrored."
  }
}

run "what_cannot_be_mirrored_is_refused" {
  command = plan

  variables {
    mirror = "arp"
  }

  expect_failures = [var.mirror]
}
