# Pure: no provider, no resource. What an instance is told at its first boot.
terraform {
  required_version = ">= 1.11"
}
