output "settings" {
  description = "Text of /etc/tapfleet/tapfleet.toml."
  value       = local._toml

  precondition {
    condition     = length(local._user_data) <= 16384
    error_message = "The settings are too long: EC2 takes at most 16384 bytes of user data."
  }
}

output "user_data" {
  description = "The script that cloud-init runs at the first boot; plain text."
  value       = local._user_data
}
