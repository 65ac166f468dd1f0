# The machine image of the capture fleet: agent, units, user and kernel settings as packages bring them, nothing that starts unasked.
# The user data that Terraform writes mounts the spool, writes the settings and starts the agent. `make image` runs it.
locals {
  distributions = {
    amazon-linux-2023 = {
      owner = "amazon"
      names = { x86_64 = "al2023-ami-2023.*-kernel-6.1-x86_64", arm64 = "al2023-ami-2023.*-kernel-6.1-arm64" }
      user  = "ec2-user"
      root  = "/dev/xvda"
    }
    debian-12 = {
      owner = "136693071363"
      names = { x86_64 = "debian-12-amd64-*", arm64 = "debian-12-arm64-*" }
      user  = "admin"
      root  = "/dev/xvda"
    }
    "ubuntu-24.04" = {
      owner = "099720109477"
      names = {
        x86_64 = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-amd64-server-*"
        arm64  = "ubuntu/images/hvm-ssd-gp3/ubuntu-noble-24.04-arm64-server-*"
      }
      user = "ubuntu"
      root = "/dev/sda1"
    }
  }
  system = local.distributions[var.distribution]

  # Names of images take no plus sign.
  name = "tapfleet-${replace(var.agent_version, "+", "-")}-${var.distribution}-${var.architecture}"

  tags = {
    Name                    = local.name
    "tapfleet:version"      = var.agent_version
    "tapfleet:commit"       = var.agent_commit
    "tapfleet:distribution" = var.distribution
  }

  # As root, with the variables of the provisioner and no shell history.
  as_root = "sudo env {{ .Vars }} bash '{{ .Path }}'"
}

source "amazon-ebs" "agent" {
  region          = var.region
  ami_name        = local.name
  ami_description = "tapfleet agent ${var.agent_version} on ${var.distribution}, ${var.architecture}"
  tags            = local.tags
  snapshot_tags   = local.tags
  run_tags        = local.tags
  run_volume_tags = local.tags
  ena_support     = true
  encrypt_boot    = true
  kms_key_id      = var.kms_key_id
  # Instances of the image answer metadata only to IMDSv2, whatever launches them.
  imds_support = "v2.0"

  source_ami_filter {
    owners      = [local.system.owner]
    most_recent = true

    filters = {
      name                = local.system.names[var.architecture]
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
  }

  instance_type               = var.builder.instance_type != "" ? var.builder.instance_type : var.architecture == "arm64" ? "c7g.xlarge" : "c6i.xlarge"
  subnet_id                   = var.builder.subnet_id
  associate_public_ip_address = var.builder.public
  ssh_username                = local.system.user
  ssh_clear_authorized_keys   = true
  # SSH to the builder from here alone. (One without a public address is reached from wherever its network allows.)
  temporary_security_group_source_public_ip = var.builder.public

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }

  launch_block_device_mappings {
    device_name           = local.system.root
    volume_type           = "gp3"
    volume_size           = 16
    iops                  = 3000
    throughput            = 125
    encrypted             = true
    kms_key_id            = var.kms_key_id
    delete_on_termination = true
  }
}

build {
  sources = ["source.amazon-ebs.agent"]

  # /var/tmp, for it outlives a reboot and /tmp may be small.
  provisioner "shell" {
    inline = ["mkdir -p /var/tmp/tapfleet"]
  }

  provisioner "file" {
    source      = var.agent
    destination = "/var/tmp/tapfleet/"
  }

  provisioner "file" {
    source      = "${path.root}/rootfs"
    destination = "/var/tmp/tapfleet/"
  }

  provisioner "shell" {
    execute_command  = local.as_root
    environment_vars = ["TAPFLEET_VERSION=${var.agent_version}"]

    scripts = [
      "${path.root}/provision/build.sh",
      "${path.root}/provision/install.sh",
      "${path.root}/provision/clean.sh",
      "${path.root}/provision/prove-clean.sh",
    ]
  }
}
