output "target_ids" {
  description = "Ids of the mirror targets: by zone name, or `direct`."
  value       = local._target_ids
}

output "filter_id" {
  description = "Id of the mirror filter."
  value       = aws_ec2_traffic_mirror_filter.sources.id

  depends_on = [aws_ec2_traffic_mirror_filter_rule.source]
}

output "endpoint_ids" {
  description = "Ids of the load balancer endpoints by zone name; they stand in manifests and pcapng files as the origin."
  value       = { for zone, endpoint in aws_vpc_endpoint.captures : zone => endpoint.id }
}

output "sessions" {
  description = "Id and VNI of each session."
  value = {
    for name, session in aws_ec2_traffic_mirror_session.source :
    name => { id = session.id, virtual_network_id = session.virtual_network_id, network_interface_id = session.network_interface_id }
  }
}
