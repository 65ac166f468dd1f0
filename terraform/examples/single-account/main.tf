# Hub and spoke in one account: the smallest whole thing.
module "hub" {
  source = "../../modules/hub"

  name    = var.name
  network = var.hub_network
  fleet = {
    ami_id        = var.agent_ami_id
    instance_type = var.traffic_mirror_agent_instance_type
    min_size      = var.traffic_mirror_asg_min_size
    max_size      = var.traffic_mirror_asg_max_size
  }
  endpoint_service = {
    allowed_principals       = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"]
    enable_manual_acceptance = false
  }
  bucket   = { name = var.s3_bucket_name }
  alert    = { sns_notify_emails = [var.sns_notify_email] }
  settings = var.settings
}

module "sources" {
  source = "../../modules/demo_source"

  name          = "${var.name}-sources"
  cidr_block    = var.source_network.cidr_block
  subnets       = var.source_network.subnets
  src_ec2_count = var.src_ec2_count
}

module "spoke" {
  source = "../../modules/spoke"

  name                       = var.name
  vpc_id                     = module.sources.vpc_id
  subnet_ids                 = module.sources.subnet_ids
  gwlb_endpoint_service_name = module.hub.gwlb_endpoint_service_name
  sessions                   = module.sources.sessions
  alarm                      = { topic_arn = module.hub.topic_arn }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
