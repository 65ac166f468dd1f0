mock_provider "aws" {
  alias  = "hub"
  source = "../../mocks"
}

mock_provider "aws" {
  alias  = "spoke_1"
  source = "../../mocks"
}

mock_provider "aws" {
  alias  = "spoke_2"
  source = "../../mocks"
}

# No two interfaces are the same one.
override_resource {
  target = module.sources_1.aws_instance.source["source-1"]
  values = { primary_network_interface_id = "eni-0123456789abcdef1" }
}

override_resource {
  target = module.sources_1.aws_instance.source["source-2"]
  values = { primary_network_interface_id = "eni-0123456789abcdef2" }
}

override_resource {
  target = module.sources_2.aws_instance.source["source-1"]
  values = { primary_network_interface_id = "eni-0123456789abcdef3" }
}

override_resource {
  target = module.sources_2.aws_instance.source["source-2"]
  values = { primary_network_interface_id = "eni-0123456789abcdef4" }
}

run "the_example_can_be_made_as_it_stands" {
  assert {
    condition     = alltrue([for spoke in ["spoke_1", "spoke_2"] : toset(keys(output.sessions[spoke])) == toset(["source-1", "source-2"])])
    error_message = "Each demo source of each spoke must be mirrored."
  }
}

run "a_spoke_of_its_own_root_is_one_entry_more" {
  variables {
    spoke_accounts = { payments = "444444444444" }
  }

  assert {
    condition     = contains(values(local._spoke_accounts), "444444444444")
    error_message = "The account may not make endpoints."
  }
}

run "a_role_is_named_and_not_its_arn" {
  command = plan

  variables {
    terraform_deployment_role = "arn:aws:iam::111111111111:role/deploy"
  }

  expect_failures = [var.terraform_deployment_role]
}
