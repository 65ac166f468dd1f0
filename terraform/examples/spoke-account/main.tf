# One spoke account, applied once for each with its own tfvars file and state.
module "spoke" {
  source = "../../modules/spoke"

  name                       = var.name
  vpc_id                     = var.vpc_id
  subnet_ids                 = var.subnet_ids
  gwlb_endpoint_service_name = var.gwlb_endpoint_service_name
  filter                     = var.filter
  sessions                   = var.sessions
  alarm                      = var.alarm_topic_arn == null ? null : { topic_arn = var.alarm_topic_arn }
}
