mock_provider "aws" {
  source = "../../mocks"
}

run "the_example_can_be_made_as_it_stands" {
  assert {
    condition     = toset(keys(output.sessions)) == toset(["source-1", "source-2"])
    error_message = "Each demo source must be mirrored."
  }
}
