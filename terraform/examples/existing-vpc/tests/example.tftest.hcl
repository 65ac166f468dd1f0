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
    condition     = output.topic_arn == "arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts"
    error_message = "The fleet must be made all the same."
  }
}
