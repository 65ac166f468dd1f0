mock_provider "aws" {
  source = "../../mocks"
}

run "the_example_can_be_made_as_it_stands" {
  assert {
    condition     = toset(keys(output.sessions)) == toset(["web"]) && toset(keys(output.target_ids)) == toset(["eu-central-1a"])
    error_message = "The interface must be mirrored to the endpoint of its zone."
  }
}
