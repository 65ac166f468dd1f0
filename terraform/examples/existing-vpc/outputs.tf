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
