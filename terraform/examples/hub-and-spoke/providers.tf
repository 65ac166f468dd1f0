# Whoever runs Terraform assumes one role in each account.
provider "aws" {
  alias  = "hub"
  region = var.region

  assume_role {
    role_arn = "arn:${var.partition}:iam::${var.hub_account_id}:role/${var.terraform_deployment_role}"
  }

  default_tags {
    tags = var.default_tags
  }
}

provider "aws" {
  alias  = "spoke_1"
  region = var.region

  assume_role {
    role_arn = "arn:${var.partition}:iam::${var.spoke_account_1_id}:role/${var.terraform_deployment_role}"
  }

  default_tags {
    tags = var.default_tags
  }
}

provider "aws" {
  alias  = "spoke_2"
  region = var.region

  assume_role {
    role_arn = "arn:${var.partition}:iam::${var.spoke_account_2_id}:role/${var.terraform_deployment_role}"
  }

  default_tags {
    tags = var.default_tags
  }
}
