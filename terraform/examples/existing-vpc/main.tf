# The fleet in a VPC that is there, and sessions for interfaces that are there.
module "hub" {
  source = "../../modules/hub"

  name = var.name
  network = {
    existing = {
      vpc_id          = var.vpc_id
      subnet_ids      = var.subnet_ids
      route_table_ids = var.route_table_ids
    }
  }
  endpoints = { create = var.create_endpoints }
  fleet     = { ami_id = var.agent_ami_id }
  endpoint_service = {
    allowed_principals       = ["arn:${data.aws_partition.current.partition}:iam::${data.aws_caller_identity.current.account_id}:root"]
    enable_manual_acceptance = false
  }
  bucket = { name = var.s3_bucket_name }
  alert  = { sns_notify_emails = [var.sns_notify_email] }
}

module "spoke" {
  source = "../../modules/spoke"

  name                       = var.name
  vpc_id                     = var.vpc_id
  subnet_ids                 = var.subnet_ids
  gwlb_endpoint_service_name = module.hub.gwlb_endpoint_service_name
  sessions                   = var.sessions
  alarm                      = { topic_arn = module.hub.topic_arn }
}

data "aws_caller_identity" "current" {}
data "aws_partition" "current" {}
