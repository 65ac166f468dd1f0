# The real provider, planning without AWS: what it would write, policies as text included. What AWS would answer is given here.
provider "aws" {
  region                      = "eu-central-1"
  access_key                  = "none"
  secret_key                  = "none"
  skip_credentials_validation = true
  skip_metadata_api_check     = true
  skip_requesting_account_id  = true
}

override_data {
  target = data.aws_caller_identity.current
  values = { account_id = "111111111111" }
}

override_data {
  target = data.aws_availability_zones.usable
  values = { names = ["eu-central-1a", "eu-central-1b", "eu-central-1c"] }
}

override_data {
  target = data.aws_ec2_managed_prefix_list.bucket
  values = { id = "pl-0123456789abcdef0" }
}

override_resource {
  target          = aws_kms_key.captures
  values          = { arn = "arn:aws:kms:eu-central-1:111111111111:key/captures", key_id = "captures" }
  override_during = plan
}

override_resource {
  target          = aws_kms_key.alerts
  values          = { arn = "arn:aws:kms:eu-central-1:111111111111:key/alerts", key_id = "alerts" }
  override_during = plan
}

override_resource {
  target          = aws_sns_topic.alerts
  values          = { arn = "arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts" }
  override_during = plan
}

# The provider has AWS validate its definition while planning.
override_resource {
  target          = aws_sfn_state_machine.orphans
  values          = { arn = "arn:aws:states:eu-central-1:111111111111:stateMachine:tapfleet-orphans" }
  override_during = plan
}

variables {
  network = {
    cidr_block = "10.0.0.0/24"
    subnets    = { "eu-central-1a" = "10.0.0.0/26", "eu-central-1b" = "10.0.0.64/26" }
  }
  fleet            = { ami_id = "ami-0123456789abcdef0" }
  endpoint_service = { allowed_principals = ["arn:aws:iam::222222222222:root"] }
  bucket           = { name = "captures-of-a-test", key_prefix = "packet-captures/" }
  alert            = { sns_notify_emails = ["ops@example.com"], alarm_accounts = ["222222222222"] }
}

run "the_fleet_may_add_objects_and_neither_change_nor_delete_one" {
  command = plan

  assert {
    condition = alltrue([
      for statement in data.aws_iam_policy_document.agent.statement :
      coalesce(statement.effect, "Allow") == "Allow" && !anytrue([
        for action in statement.actions :
        action == "*" || strcontains(action, "Delete") && !startswith(action, "ec2messages:") || startswith(action, "s3:*") || startswith(action, "iam:")
      ])
    ])
    error_message = "The role of the agents may delete something, or anything."
  }

  assert {
    condition = toset(flatten([
      for statement in data.aws_iam_policy_document.agent.statement : tolist(statement.resources)
      if contains(statement.actions, "s3:PutObject")
      ])) == toset([
      "arn:aws:s3:::captures-of-a-test/packet-captures/i-*",
      "arn:aws:s3:::captures-of-a-test/status/*",
      "arn:aws:s3:::captures-of-a-test/manifest/*",
      "arn:aws:s3:::captures-of-a-test/index/*",
    ])
    error_message = "The agents may write elsewhere than captures, manifests, status and index."
  }

  assert {
    condition = length([
      for statement in jsondecode(data.aws_iam_policy_document.bucket.json).Statement : statement
      if statement.Effect == "Deny" && statement.Action == "s3:PutObject" &&
      statement.Resource == "arn:aws:s3:::captures-of-a-test/packet-captures/i-*" &&
      try(statement.Condition.Null["s3:if-none-match"], "") == "true" &&
      try(statement.Condition.Bool["s3:ObjectCreationOperation"], "") == "true" &&
      statement.Principal.AWS == "arn:aws:iam::111111111111:role/tapfleet-agent-eu-central-1"
    ]) == 1
    error_message = "The bucket does not demand If-None-Match of captures: ${data.aws_iam_policy_document.bucket.json}"
  }

  assert {
    condition = length([
      for statement in jsondecode(data.aws_iam_policy_document.bucket.json).Statement : statement
      if statement.Effect == "Deny" && contains(flatten([statement.Action]), "s3:DeleteObject*") && !can(statement.Condition)
    ]) == 1
    error_message = "The bucket does not deny deletes to the agents."
  }
}

run "nothing_reaches_the_bucket_in_the_clear_or_by_a_public_way" {
  command = plan

  assert {
    condition = length([
      for statement in jsondecode(data.aws_iam_policy_document.bucket.json).Statement : statement
      if statement.Effect == "Deny" && statement.Action == "s3:*" && statement.Principal == { AWS = "*" } &&
      toset(flatten([statement.Resource])) == toset(["arn:aws:s3:::captures-of-a-test", "arn:aws:s3:::captures-of-a-test/*"]) &&
      try(statement.Condition.Bool["aws:SecureTransport"], "") == "false"
    ]) == 1
    error_message = "The bucket can be reached without TLS: ${data.aws_iam_policy_document.bucket.json}"
  }

  assert {
    condition = (
      aws_s3_bucket_public_access_block.captures.block_public_acls && aws_s3_bucket_public_access_block.captures.block_public_policy &&
      aws_s3_bucket_public_access_block.captures.ignore_public_acls && aws_s3_bucket_public_access_block.captures.restrict_public_buckets
    )
    error_message = "Public access is not blocked."
  }

  assert {
    condition     = one(one(aws_s3_bucket_server_side_encryption_configuration.captures.rule).apply_server_side_encryption_by_default).kms_master_key_id == "arn:aws:kms:eu-central-1:111111111111:key/captures"
    error_message = "The bucket does not encrypt with the captures' key."
  }

  assert {
    condition     = one(aws_s3_bucket_versioning.captures.versioning_configuration).status == "Enabled" && one(aws_s3_bucket_ownership_controls.captures.rule).object_ownership == "BucketOwnerEnforced"
    error_message = "The bucket is not versioned, or objects can belong to others."
  }
}

run "alarms_and_events_reach_the_encrypted_topic" {
  command = plan

  assert {
    condition = length([
      for statement in jsondecode(data.aws_iam_policy_document.alerts_key.json).Statement : statement
      if statement.Effect == "Allow" && toset(try(flatten([statement.Principal.Service]), [])) == toset(["cloudwatch.amazonaws.com", "events.amazonaws.com"]) &&
      toset(flatten([statement.Action])) == toset(["kms:Decrypt", "kms:GenerateDataKey*"]) &&
      try(statement.Condition.StringEquals["kms:EncryptionContext:aws:sns:topicArn"], "") == "arn:aws:sns:eu-central-1:111111111111:tapfleet-alerts"
    ]) == 1
    error_message = "CloudWatch and EventBridge cannot use the topic's key: ${data.aws_iam_policy_document.alerts_key.json}"
  }

  assert {
    condition = length([
      for statement in jsondecode(data.aws_iam_policy_document.alerts_topic.json).Statement : statement
      if statement.Effect == "Allow" && toset(try(flatten([statement.Principal.Service]), [])) == toset(["cloudwatch.amazonaws.com", "events.amazonaws.com"]) &&
      toset(try(flatten([statement.Condition.StringEquals["aws:SourceAccount"]]), [])) == toset(["111111111111", "222222222222"])
    ]) == 1
    error_message = "Alarms of hub and spokes, and of nobody else, must be allowed to publish: ${data.aws_iam_policy_document.alerts_topic.json}"
  }

  assert {
    condition     = !strcontains(data.aws_iam_policy_document.captures_key.json, "amazonaws.com")
    error_message = "A service may use the key of the captures."
  }

  assert {
    condition     = aws_sns_topic.alerts.kms_master_key_id == "arn:aws:kms:eu-central-1:111111111111:key/alerts" && aws_sns_topic_subscription.email["ops@example.com"].protocol == "email"
    error_message = "The topic is not encrypted, or nobody gets its mails."
  }
}

run "arns_are_of_the_partition" {
  command = plan

  override_data {
    target = data.aws_partition.current
    values = { partition = "aws-us-gov", dns_suffix = "amazonaws.com" }
  }

  override_data {
    target = data.aws_region.current
    values = { id = "us-gov-west-1" }
  }

  override_data {
    target = data.aws_availability_zones.usable
    values = { names = ["us-gov-west-1a"] }
  }

  variables {
    network   = { cidr_block = "10.0.0.0/24", subnets = { "us-gov-west-1a" = "10.0.0.0/26" } }
    endpoints = { fips = true }
    bucket    = { name = "captures-of-a-test" }
  }

  assert {
    condition = !anytrue([
      for text in [
        data.aws_iam_policy_document.captures_key.json,
        data.aws_iam_policy_document.alerts_topic.json,
        data.aws_iam_policy_document.bucket.json,
        data.aws_iam_policy_document.bucket_endpoint.json,
        jsonencode([for statement in data.aws_iam_policy_document.agent.statement : statement.resources if !startswith(statement.sid, "Encrypt")]),
      ] : strcontains(text, "arn:aws:")
    ])
    error_message = "A policy names an ARN of the partition aws."
  }

  assert {
    condition     = local._topic_arn == "arn:aws-us-gov:sns:us-gov-west-1:111111111111:tapfleet-alerts" && aws_vpc_endpoint.bucket[0].service_name == "com.amazonaws.us-gov-west-1.s3"
    error_message = "Topic or endpoint are not of the partition."
  }

  assert {
    condition     = strcontains(base64decode(aws_launch_template.agent.user_data), base64encode("AWS_USE_FIPS_ENDPOINT=true\n"))
    error_message = "The agent is not told to use FIPS endpoints."
  }
}

run "the_endpoint_of_s3_leads_to_the_one_bucket" {
  command = plan

  assert {
    condition     = toset(flatten([jsondecode(data.aws_iam_policy_document.bucket_endpoint.json).Statement[0].Resource])) == toset(["arn:aws:s3:::captures-of-a-test/*", "arn:aws:s3:::captures-of-a-test"])
    error_message = "The endpoint of S3 leads elsewhere, too."
  }

  assert {
    condition     = toset(keys(aws_vpc_endpoint.interface)) == toset(["autoscaling", "ec2", "ec2messages", "kms", "logs", "monitoring", "sns", "ssm", "ssmmessages", "sts"])
    error_message = "An endpoint is missing."
  }
}
