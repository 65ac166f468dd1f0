mock_provider "aws" {
  source = "../../mocks"
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
