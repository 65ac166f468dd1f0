output "target_ids" {
  description = "Mirror targets by zone name."
  value       = module.spoke.target_ids
}

output "filter_id" {
  description = "The mirror filter."
  value       = module.spoke.filter_id
}

output "sessions" {
  description = "What is mirrored."
  value       = module.spoke.sessions
}
