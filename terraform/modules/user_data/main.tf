locals {
  # A JSON scalar or list is also a TOML value, and jsonencode's \u escapes are TOML's.
  _sections = [
    for section, keys in var.settings : join("\n", concat(
      ["[${section}]"],
      [for key, value in keys : "${key} = ${jsonencode(value)}" if value != null],
    ))
  ]

  _toml        = "# Written by Terraform for ${var.name}. Change it there: instances are replaced, not edited.\n\n${join("\n\n", local._sections)}\n"
  _environment = join("", [for key, value in var.environment : "${key}=${value}\n"])

  _user_data = templatefile("${path.module}/user_data.sh.tftpl", {
    settings    = base64encode(local._toml)
    environment = base64encode(local._environment)
  })
}
