# Its state is read by tests/tests/terraform.rs, which holds it against the agent, its settings and its unit.
mock_provider "aws" {
  source = "../../mocks"
}

run "what_the_agent_and_its_unit_rely_on" {
  variables {
    network = {
      cidr_block     = "10.0.0.0/24"
      subnets        = { "eu-central-1a" = "10.0.0.0/26", "eu-central-1b" = "10.0.0.64/26" }
      direct_sources = ["10.9.0.0/16"]
    }
    fleet            = { ami_id = "ami-0123456789abcdef0" }
    endpoint_service = { allowed_principals = ["arn:aws:iam::222222222222:root"] }
    bucket           = { name = "captures-of-a-test", key_prefix = "packet-captures/" }
    alert            = { sns_notify_emails = ["ops@example.com"] }
    endpoints        = { dual_stack = true }
    settings = {
      capture = { filter = "not (host 10.0.0.1 and len <= 96)", threads = 4, mirror_sources = ["10.0.0.0/8"] }
      record  = { format = "pcapng", schedule = ["Mon-Fri 08:00-18:00 Europe/Berlin"] }
      alert   = { drop_ratio = 0.01, on_start = true }
    }
  }

  assert {
    condition     = output.group_name == "tapfleet-agents"
    error_message = "There is no fleet."
  }
}
