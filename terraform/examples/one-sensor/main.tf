# The lab: sources, a mirror session for each, VXLAN straight to one agent. No load balancer.
locals {
  _filters = {
    all  = []
    icmp = [for direction in ["ingress", "egress"] : { direction = direction, protocol = 1 }]
    http = [
      { direction = "ingress", protocol = 6, ports = { from = 8000, to = 8000 } },
      { direction = "egress", protocol = 6, ports = { from = 8000, to = 8000 } },
      { direction = "ingress", protocol = 6, peer_ports = { from = 8000, to = 8000 } },
      { direction = "egress", protocol = 6, peer_ports = { from = 8000, to = 8000 } },
    ]
  }
  _zone = keys(var.network.subnets)[0]
}

module "sources" {
  source = "../../modules/demo_source"

  name          = "${var.name}-sources"
  cidr_block    = var.network.cidr_block
  subnets       = var.network.subnets
  src_ec2_count = var.src_ec2_count
}

module "hub" {
  source = "../../modules/hub"

  name = var.name
  network = {
    existing = {
      vpc_id          = module.sources.vpc_id
      subnet_ids      = module.sources.subnet_ids
      route_table_ids = module.sources.route_table_ids
    }
    direct_sources = [var.network.cidr_block]
  }
  load_balancer = null
  fleet         = { ami_id = var.agent_ami_id, expected_gbps = 0.1 }
  # A lab leaves nothing behind.
  spool  = { size_gib = 16, delete_on_termination = true }
  bucket = { name = var.s3_bucket_name, force_destroy = true }
  alert  = { sns_notify_emails = [var.sns_notify_email] }
}

# Image, disks, role, settings and security group come from the hub's template. Reached through Session Manager only.
resource "aws_instance" "sensor" {
  #checkov:skip=CKV_AWS_79: IMDSv2 is demanded by the launch template
  #checkov:skip=CKV_AWS_8: the launch template encrypts the disks
  #checkov:skip=CKV_AWS_126: the launch template turns monitoring on
  #checkov:skip=CKV2_AWS_41: the launch template names the role
  instance_type = var.sensor_instance_type
  subnet_id     = module.sources.subnet_ids[local._zone]
  ebs_optimized = true
  # The template's tags, too: what the template gives and this does not name would be taken away by the next apply.
  # The last one lets the deploy policy `demo-sources` end it.
  tags = { Name = "${var.name}-sensor", "tapfleet:hub" = var.name, "tapfleet:demo" = var.name }

  # By number: new settings are a new version, and that a new sensor, in the same apply.
  launch_template {
    id      = module.hub.agent.launch_template_id
    version = module.hub.agent.launch_template_version
  }

  # The provider takes the digest of the template's user data for user data, and would write it in its place at each apply.
  lifecycle {
    ignore_changes = [user_data]
  }
}

module "spoke" {
  source = "../../modules/spoke"

  name          = var.name
  vpc_id        = module.sources.vpc_id
  direct_target = { network_interface_id = aws_instance.sensor.primary_network_interface_id }
  filter        = { rules = local._filters[var.mirror] }
  sessions      = module.sources.sessions
}
