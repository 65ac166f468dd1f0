output "bucket" {
  description = "Where captures arrive."
  value       = module.hub.bucket.name
}

output "topic_arn" {
  description = "Where troubles are told."
  value       = module.hub.topic_arn
}

output "sessions" {
  description = "What is mirrored."
  value       = module.spoke.sessions
}

output "spool_outage_hours" {
  description = "Hours of an S3 outage that an instance bridges."
  value       = module.hub.spool_outage_hours
}
