resource "aws_ec2_traffic_mirror_session" "source" {
  for_each = var.sessions

  description              = coalesce(each.value.description, "${var.name}: ${each.key}")
  network_interface_id     = each.value.network_interface_id
  session_number           = each.value.session_number
  virtual_network_id       = each.value.virtual_network_id
  packet_length            = each.value.packet_length
  traffic_mirror_filter_id = aws_ec2_traffic_mirror_filter.sources.id
  traffic_mirror_target_id = var.direct_target == null ? local._target_ids[coalesce(each.value.zone, keys(var.subnet_ids)[0])] : local._target_ids[local._direct]
  tags                     = merge(local._tags, { Name = each.key })

  # A session whose filter has no rules yet mirrors nothing, and says nothing about it.
  depends_on = [aws_ec2_traffic_mirror_filter_rule.source]
}
