# A hub and two spokes from one root. A third one in this root is a provider block and two module blocks; a spoke of its own
# root and state (../spoke-account) is one entry in spoke_accounts here and one file there.
locals {
  _spoke_accounts = merge({ spoke_1 = var.spoke_account_1_id, spoke_2 = var.spoke_account_2_id }, var.spoke_accounts)
}

module "hub" {
  source    = "../../modules/hub"
  providers = { aws = aws.hub }

  name = var.name
  network = {
    cidr_block = var.vpc_data_map.hub.cidr
    subnets    = var.vpc_data_map.hub.private_subnets
  }
  fleet = {
    ami_id        = var.agent_ami_id
    instance_type = var.traffic_mirror_agent_instance_type
    min_size      = var.traffic_mirror_asg_min_size
    max_size      = var.traffic_mirror_asg_max_size
    expected_gbps = var.expected_gbps
  }
  load_balancer = {
    cross_zone_load_balancing_enabled = var.cross_zone_load_balancing_enabled
    deletion_protection_enabled       = var.deletion_protection_enabled
  }
  endpoint_service = {
    allowed_principals = concat(
      [for account in values(local._spoke_accounts) : "arn:${var.partition}:iam::${account}:root"],
      var.allowed_principals,
    )
    enable_manual_acceptance = var.enable_manual_acceptance
  }
  bucket = {
    name       = var.s3_bucket_name
    key_prefix = var.key_prefix
  }
  alert = {
    sns_notify_emails = [var.sns_notify_email]
    alarm_accounts    = values(local._spoke_accounts)
  }
  settings                 = var.settings
  permissions_boundary_arn = var.permissions_boundary_arn
}

module "sources_1" {
  source    = "../../modules/demo_source"
  providers = { aws = aws.spoke_1 }

  name          = var.vpc_data_map.spoke_1.name
  cidr_block    = var.vpc_data_map.spoke_1.cidr
  subnets       = var.vpc_data_map.spoke_1.private_subnets
  src_ec2_count = var.src_ec2_count
}

module "spoke_1" {
  source    = "../../modules/spoke"
  providers = { aws = aws.spoke_1 }

  name                       = var.name
  vpc_id                     = module.sources_1.vpc_id
  subnet_ids                 = module.sources_1.subnet_ids
  gwlb_endpoint_service_name = module.hub.gwlb_endpoint_service_name
  sessions                   = module.sources_1.sessions
  alarm                      = { topic_arn = module.hub.topic_arn }
}

module "sources_2" {
  source    = "../../modules/demo_source"
  providers = { aws = aws.spoke_2 }

  name          = var.vpc_data_map.spoke_2.name
  cidr_block    = var.vpc_data_map.spoke_2.cidr
  subnets       = var.vpc_data_map.spoke_2.private_subnets
  src_ec2_count = var.src_ec2_count
}

module "spoke_2" {
  source    = "../../modules/spoke"
  providers = { aws = aws.spoke_2 }

  name                       = var.name
  vpc_id                     = module.sources_2.vpc_id
  subnet_ids                 = module.sources_2.subnet_ids
  gwlb_endpoint_service_name = module.hub.gwlb_endpoint_service_name
  sessions                   = module.sources_2.sessions
  alarm                      = { topic_arn = module.hub.topic_arn }
}
