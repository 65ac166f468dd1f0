#!/usr/bin/env bash
# Makes the machine image of what is committed, with packer and the AWS credentials of the environment. Arguments go to `packer build`:
# -var distribution=debian-12, -var architecture=arm64, -var region=eu-north-1, … (variables.pkr.hcl).
set -euo pipefail
cd "$(dirname "$0")/.."

packer=$(packer version 2>/dev/null | sed -n '1 s/^Packer v//p')
if [ -z "$packer" ] || [ "$(printf '%s\n' 1.7.0 "$packer" | sort -V | head -n 1)" != 1.7.0 ]; then
  echo "image.sh: packer 1.7 or later is needed${packer:+ (found $packer)}: https://developer.hashicorp.com/packer/install" >&2
  exit 1
fi
if [ -n "$(git status --porcelain)" ]; then
  echo "image.sh: there are changes that are not committed; an image is of a commit" >&2
  exit 1
fi
read -r version commit _ < <(packaging/version.sh)
folder=$(realpath -m "${CARGO_TARGET_DIR:-target}")/package
archive=$folder/tapfleet-$commit.tar.gz
mkdir -p "$folder"
git archive --format=tar.gz --prefix=tapfleet/ --output="$archive" HEAD

packer init packer
packer build -var "agent=$archive" -var "agent_version=$version" -var "agent_commit=$commit" "$@" packer
