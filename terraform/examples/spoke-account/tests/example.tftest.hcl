mock_provider "aws" {
  source = "../../mocks"
}

run "the_example_can_be_made_as_it_stands" {
  assert {
    condition     = toset(keys(output.sessions)) == toset(["web"]) && toset(keys(output.target_ids)) == toset(["eu-central-1a"])
    error_message = "The interface must be mirrored to the endpoint of its zone."
  }
}

run "a_role_is_named_and_not_its_arn" {
  command = plan

  variables {
    terraform_deployment_role = "arn:aws:iam::111111111111:role/deploy"
  }

  expect_failures = [var.terraform_deployment_role]
}
