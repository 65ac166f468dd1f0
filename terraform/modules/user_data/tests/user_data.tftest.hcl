# No provider at all.
variables {
  name = "tapfleet"
  settings = {
    capture = { "ports.vxlan" = 4789, filter = "host 10.0.0.1 and \"x\" < 3", threads = 2, files = null }
    record  = { schedule = ["Mon-Fri 08:00-18:00 Europe/Berlin"], compression = "zstd" }
    alert   = { on_start = true, drop_ratio = 0.001 }
  }
  environment = { AWS_USE_DUALSTACK_ENDPOINT = "true" }
}

run "settings_become_toml_and_what_is_null_is_left_out" {
  assert {
    condition = alltrue([
      for line in [
        "[capture]", "ports.vxlan = 4789", "filter = \"host 10.0.0.1 and \\\"x\\\" \\u003c 3\"", "threads = 2", "[record]",
        "schedule = [\"Mon-Fri 08:00-18:00 Europe/Berlin\"]", "on_start = true", "drop_ratio = 0.001",
      ] : contains(split("\n", output.settings), line)
    ]) && !strcontains(output.settings, "files")
    error_message = output.settings
  }

  assert {
    condition     = strcontains(output.user_data, base64encode(output.settings)) && strcontains(output.user_data, base64encode("AWS_USE_DUALSTACK_ENDPOINT=true\n"))
    error_message = output.user_data
  }
}

run "a_section_that_breaks_out_of_its_brackets_is_refused" {
  command = plan

  variables {
    settings = { "s3]\nbucket" = { name = "x" } }
  }

  expect_failures = [var.settings]
}

run "settings_without_sections_are_refused" {
  command = plan

  variables {
    settings = { bucket = "x" }
  }

  expect_failures = [var.settings]
}

run "an_environment_that_breaks_out_of_its_line_is_refused" {
  command = plan

  variables {
    environment = { AWS_REGION = "x\nLD_PRELOAD=y" }
  }

  expect_failures = [var.environment]
}

run "settings_too_long_for_user_data_are_refused" {
  command = plan

  variables {
    settings = { capture = { filter = join(" or ", [for port in range(1000) : "tcp port ${port}"]) } }
  }

  expect_failures = [output.settings]
}

run "a_name_that_breaks_out_of_its_line_is_refused" {
  command = plan

  variables {
    name = "tap\nfleet"
  }

  expect_failures = [var.name]
}
