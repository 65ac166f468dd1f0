# Every wrong value is refused while planning, with a sentence that says what is allowed.
mock_provider "aws" {
  source = "../../mocks"
}

variables {
  network = {
    cidr_block = "10.0.0.0/24"
    subnets    = { "eu-central-1a" = "10.0.0.0/26" }
  }
  fleet  = { ami_id = "ami-0123456789abcdef0" }
  bucket = { name = "captures-of-a-test" }
  alert  = { sns_notify_emails = ["ops@example.com"] }
}

run "overlapping_networks_are_refused" {
  command = plan

  variables {
    network = {
      cidr_block = "10.0.0.0/24"
      subnets    = { "eu-central-1a" = "10.0.0.0/25", "eu-central-1b" = "10.0.0.64/26" }
    }
  }

  expect_failures = [var.network]
}

run "a_network_beyond_the_vpc_is_refused" {
  command = plan

  variables {
    network = {
      cidr_block = "10.0.0.0/24"
      subnets    = { "eu-central-1a" = "10.0.1.0/26" }
    }
  }

  expect_failures = [var.network]
}

run "a_network_with_address_bits_is_refused" {
  command = plan

  variables {
    network = {
      cidr_block = "10.0.0.0/24"
      subnets    = { "eu-central-1a" = "10.0.0.1/26" }
    }
  }

  expect_failures = [var.network]
}

run "an_unknown_zone_is_refused" {
  command = plan

  variables {
    network = {
      cidr_block = "10.0.0.0/24"
      subnets    = { "eu-central-1x" = "10.0.0.0/26" }
    }
  }

  expect_failures = [var.network]
}

run "a_new_and_an_existing_vpc_at_once_are_refused" {
  command = plan

  variables {
    network = {
      cidr_block = "10.0.0.0/24"
      subnets    = { "eu-central-1a" = "10.0.0.0/26" }
      existing   = { vpc_id = "vpc-0123456789abcdef0", subnet_ids = {}, route_table_ids = [] }
    }
  }

  expect_failures = [var.network]
}

run "no_zone_is_refused" {
  command = plan

  variables {
    network = { cidr_block = "10.0.0.0/24" }
  }

  expect_failures = [var.network]
}

run "a_spool_slower_than_the_traffic_is_refused" {
  command = plan

  variables {
    fleet = { ami_id = "ami-0123456789abcdef0", expected_gbps = 4 }
  }

  expect_failures = [var.spool]
}

run "a_throughput_beyond_the_volume_is_refused" {
  command = plan

  variables {
    spool = { throughput_mibs = 1000 }
  }

  expect_failures = [var.spool]
}

run "a_size_of_no_volume_is_refused" {
  command = plan

  variables {
    spool = { size_gib = 4 }
  }

  expect_failures = [var.spool]
}

run "every_account_as_principal_is_refused_without_the_switch" {
  command = plan

  variables {
    endpoint_service = { allowed_principals = ["*"] }
  }

  expect_failures = [var.endpoint_service]
}

run "a_principal_that_is_no_arn_is_refused" {
  command = plan

  variables {
    endpoint_service = { allowed_principals = ["222222222222"] }
  }

  expect_failures = [var.endpoint_service]
}

run "a_retention_shorter_than_the_abort_rule_is_refused" {
  command = plan

  variables {
    bucket = { name = "captures-of-a-test", expire_days = 5, transition_days = null }
  }

  expect_failures = [var.bucket]
}

run "an_abort_rule_shorter_than_the_outage_to_survive_is_refused" {
  command = plan

  variables {
    fleet  = { ami_id = "ami-0123456789abcdef0", expected_gbps = 0.1 }
    spool  = { size_gib = 16000 }
    bucket = { name = "captures-of-a-test", abort_incomplete_days = 1 }
  }

  expect_failures = [var.bucket]
}

run "a_prefix_that_manifests_have_is_refused" {
  command = plan

  variables {
    bucket = { name = "captures-of-a-test", key_prefix = "manifest/" }
  }

  expect_failures = [var.bucket]
}

run "a_bucket_name_that_is_none_is_refused" {
  command = plan

  variables {
    bucket = { name = "Captures" }
  }

  expect_failures = [var.bucket]
}

run "a_lock_longer_than_the_retention_is_refused" {
  command = plan

  variables {
    bucket = { name = "captures-of-a-test", expire_days = 60, object_lock = { mode = "COMPLIANCE", days = 90 } }
  }

  expect_failures = [var.bucket]
}

run "nobody_who_hears_of_troubles_is_refused" {
  command = plan

  variables {
    alert = { sns_notify_emails = [] }
  }

  expect_failures = [var.alert]
}

run "an_account_that_is_none_is_refused" {
  command = plan

  variables {
    alert = { sns_notify_emails = ["ops@example.com"], alarm_accounts = ["22"] }
  }

  expect_failures = [var.alert]
}

run "more_instances_at_least_than_at_most_are_refused" {
  command = plan

  variables {
    fleet = { ami_id = "ami-0123456789abcdef0", min_size = 5, max_size = 4 }
  }

  expect_failures = [var.fleet]
}

run "an_image_that_is_none_is_refused" {
  command = plan

  variables {
    fleet = { ami_id = "latest" }
  }

  expect_failures = [var.fleet]
}

run "a_root_disk_that_could_be_the_spool_is_refused" {
  command = plan

  variables {
    fleet = { ami_id = "ami-0123456789abcdef0", root_device = "/dev/sdf" }
  }

  expect_failures = [var.fleet]
}

run "an_unknown_stickiness_is_refused" {
  command = plan

  variables {
    load_balancer = { stickiness = "sometimes" }
  }

  expect_failures = [var.load_balancer]
}

run "a_deregistration_longer_than_an_hour_is_refused" {
  command = plan

  variables {
    load_balancer = { deregistration_delay = 3601 }
  }

  expect_failures = [var.load_balancer]
}

run "settings_that_the_module_makes_are_refused" {
  command = plan

  variables {
    settings = { s3 = { bucket = "another" } }
  }

  expect_failures = [var.settings]
}

run "settings_that_are_no_sections_are_refused" {
  command = plan

  variables {
    settings = { record = "pcapng" }
  }

  expect_failures = [var.settings]
}

run "an_unknown_service_is_refused" {
  command = plan

  variables {
    endpoints = { service_names = { lambda = "" } }
  }

  expect_failures = [var.endpoints]
}

run "a_boundary_that_is_no_policy_is_refused" {
  command = plan

  variables {
    permissions_boundary_arn = "boundary"
  }

  expect_failures = [var.permissions_boundary_arn]
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
    tags = { "tapfleet:spool" = "mine" }
  }

  expect_failures = [var.tags]
}

run "an_existing_vpc_without_a_subnet_is_refused" {
  command = plan

  variables {
    network = { existing = { vpc_id = "vpc-0123456789abcdef0", subnet_ids = {}, route_table_ids = ["rtb-0123456789abcdef0"] } }
  }

  expect_failures = [var.network]
}

run "a_subnet_that_is_none_is_refused" {
  command = plan

  variables {
    network = {
      existing = { vpc_id = "vpc-0123456789abcdef0", subnet_ids = { "eu-central-1a" = "10.0.0.0/26" }, route_table_ids = ["rtb-0123456789abcdef0"] }
    }
  }

  expect_failures = [var.network]
}

run "an_existing_vpc_whose_agents_would_not_reach_s3_is_refused" {
  command = plan

  variables {
    network = {
      existing = { vpc_id = "vpc-0123456789abcdef0", subnet_ids = { "eu-central-1a" = "subnet-0123456789abcdef0" }, route_table_ids = [] }
    }
  }

  expect_failures = [var.network]
}

run "a_network_that_no_vpc_can_have_is_refused" {
  command = plan

  variables {
    network = {
      cidr_block = "10.0.0.0/8"
      subnets    = { "eu-central-1a" = "10.0.0.0/26" }
    }
  }

  expect_failures = [var.network]
}

run "a_part_of_a_day_is_refused" {
  command = plan

  variables {
    bucket = { name = "captures-of-a-test", expire_days = 90.5 }
  }

  expect_failures = [var.bucket]
}

run "a_copy_without_a_key_is_refused" {
  command = plan

  variables {
    bucket = { name = "captures-of-a-test", replication = { bucket_arn = "arn:aws:s3:::copies", kms_key_arn = "alias/copies" } }
  }

  expect_failures = [var.bucket]
}

run "logs_of_a_bucket_in_itself_are_refused" {
  command = plan

  variables {
    bucket = { name = "captures-of-a-test", access_logs = { bucket = "captures-of-a-test" } }
  }

  expect_failures = [var.bucket]
}

run "a_service_name_that_is_none_is_refused" {
  command = plan

  variables {
    endpoints = { service_names = { sns = "sns-fips" } }
  }

  expect_failures = [var.endpoints]
}
