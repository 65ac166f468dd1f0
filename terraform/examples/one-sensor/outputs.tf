output "bucket" {
  description = "Where captures arrive."
  value       = module.hub.bucket.name
}

output "sensor_id" {
  description = "The sensor; `aws ssm start-session --target` leads there."
  value       = aws_instance.sensor.id
}

output "sessions" {
  description = "What is mirrored."
  value       = module.spoke.sessions
}
