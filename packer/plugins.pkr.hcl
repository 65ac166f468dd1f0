# What Packer before 1.7 does not know; the rest of this folder is valid without it.
packer {
  required_version = ">= 1.7.0"

  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = ">= 1.2.8, < 2.0.0"
    }
  }
}
