output "vpc_id" {
  description = "Id of the VPC."
  value       = aws_vpc.sources.id
}

output "subnet_ids" {
  description = "Ids of the subnets, by zone name."
  value       = { for zone, subnet in aws_subnet.sources : zone => subnet.id }
}

output "route_table_ids" {
  description = "Ids of the route tables."
  value       = [aws_route_table.sources.id]
}

output "sessions" {
  description = "What the spoke module's `sessions` takes: one for each instance."
  value = {
    for name, instance in aws_instance.source :
    name => { network_interface_id = instance.primary_network_interface_id, zone = local._sources[name].zone }
  }
}
