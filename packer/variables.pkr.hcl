variable "agent" {
  description = "What the agent comes from: a source archive of this project, built on the builder, or a .deb or .rpm of `make package`."
  type        = string

  validation {
    condition     = regex_replace(var.agent, "^.+[.](tar[.]gz|deb|rpm)$", "") == ""
    error_message = "The agent must be the path of a .tar.gz, a .deb or an .rpm; `make image` makes the archive."
  }
}

variable "agent_version" {
  description = "The version that packages of it bear; image.sh gives it. The image must end up with this one."
  type        = string
}

variable "agent_commit" {
  description = "The commit that it is of; image.sh gives it."
  type        = string
}

variable "architecture" {
  description = "The processor of image and builder."
  type        = string
  default     = "x86_64"

  validation {
    condition     = contains(["x86_64", "arm64"], var.architecture)
    error_message = "The architecture must be x86_64 or arm64."
  }
}

variable "distribution" {
  description = "The system that the image is made from. Debian brings no SSM agent: nobody can log in to its instances."
  type        = string
  default     = "amazon-linux-2023"

  validation {
    condition     = contains(["amazon-linux-2023", "debian-12", "ubuntu-24.04"], var.distribution)
    error_message = "The distribution must be amazon-linux-2023, debian-12 or ubuntu-24.04."
  }
}

variable "builder" {
  description = "The instance that builds: type (empty: four processors of the architecture), subnet (empty: the default VPC's), whether it has a public address."
  type = object({
    instance_type = string
    subnet_id     = string
    public        = bool
  })
  default = {
    instance_type = ""
    subnet_id     = ""
    public        = true
  }
}

variable "kms_key_id" {
  description = "The key that encrypts the image. Empty: the account's own for EBS, with which an image cannot be shared with other accounts."
  type        = string
  default     = ""
}

variable "region" {
  description = "Where the image is made. Empty: AWS_REGION's, or the profile's."
  type        = string
  default     = ""
}
