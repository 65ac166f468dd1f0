mock_provider "aws" {
  source = "../../mocks"
}

run "the_example_can_be_made_as_it_stands" {
  assert {
    condition     = toset(keys(output.sessions)) == toset(["web"])
    error_message = "The interface must be mirrored."
  }
}

run "endpoints_that_are_there_are_not_made" {
  variables {
    create_endpoints = false
  }

  assert {
    condition     = output.bucket == "my-captures-123456789012"
    error_message = "The fleet must be made all the same."
  }
}
