output "gwlb_endpoint_service_name" {
  description = "For the roots of further spokes."
  value       = module.hub.gwlb_endpoint_service_name
}

output "bucket" {
  description = "Where captures arrive."
  value       = module.hub.bucket.name
}

output "topic_arn" {
  description = "Where troubles are told; for the alarms of further spokes."
  value       = module.hub.topic_arn
}

output "sessions" {
  description = "What is mirrored, by spoke."
  value       = { spoke_1 = module.spoke_1.sessions, spoke_2 = module.spoke_2.sessions }
}

output "spool_outage_hours" {
  description = "Hours of an S3 outage that an instance bridges."
  value       = module.hub.spool_outage_hours
}
