provider "aws" {
  region = var.region

  assume_role {
    role_arn = "arn:${var.partition}:iam::${var.account_id}:role/${var.terraform_deployment_role}"
  }

  default_tags {
    tags = var.default_tags
  }
}
