variable "name" {
  description = "Name of the capture fleet; it stands at the head of the settings."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]*$", var.name))
    error_message = "name must be lower-case letters, digits and hyphens, and must begin with a letter."
  }
}

variable "settings" {
  description = <<-EOT
    The agent's settings: section, then key, then value, as in /etc/tapfleet/tapfleet.toml. A dotted key such as
    "ports.vxlan" is one key. Null values are left out.
  EOT
  type        = any

  validation {
    condition     = can([for section, keys in var.settings : [for key, value in keys : jsonencode(value)]])
    error_message = "settings must be an object of sections, each an object of keys: { record = { format = \"pcapng\" } }."
  }

  validation {
    condition = try(alltrue(flatten([
      for section, keys in var.settings : [
        for key in concat([section], keys(keys)) : can(regex("^[a-z][a-z0-9_]*(\\.[a-z][a-z0-9_]*)*$", key))
      ]
    ])), false)
    error_message = "Sections and keys of settings are lower-case letters, digits and underscores, with dots between the parts of a key."
  }
}

variable "environment" {
  description = "Environment variables of the agent's service, for instance AWS_USE_FIPS_ENDPOINT = \"true\"."
  type        = map(string)
  default     = {}

  validation {
    condition = alltrue([
      for key, value in var.environment : can(regex("^[A-Z][A-Z0-9_]*$", key)) && can(regex("^[A-Za-z0-9._:/-]*$", value))
    ])
    error_message = "Names of environment variables are capital letters, digits and underscores; values are letters, digits and . _ : / -."
  }
}
