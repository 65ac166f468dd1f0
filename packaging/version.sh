#!/usr/bin/env bash
# Prints the version that packages and images of this source bear, its commit and the commit's time (seconds since 1970).
# 0.1.0+20261122083113.0ac5448 is the crate's version, the commit's time and the commit: it sorts by time. What is not committed is said.
# Needs git, or a source archive that git made (packaging/commit).
set -euo pipefail
cd "$(dirname "$0")/.."

if [ -e .git ]; then
  read -r commit seconds < <(git log -1 --format='%H %ct')
  dirty=$(git status --porcelain | head -n 1)
else
  read -r commit seconds < <(grep -v '^#' packaging/commit)
  dirty=
fi
if ! [[ $commit =~ ^[0-9a-f]{40}$ && $seconds =~ ^[0-9]+$ ]]; then
  echo "version.sh: neither git nor packaging/commit says which commit this is: '$commit $seconds'" >&2
  exit 1
fi
# Cut here, not by git: an archive does not know how many digits tell its clone's commits apart.
commit=${commit:0:9}
crate=$(sed -n '/^\[workspace.package\]/,/^\[/ s/^version = "\(.*\)"/\1/p' Cargo.toml)
echo "$crate+$(date --utc --date="@$seconds" +%Y%m%d%H%M%S).$commit${dirty:+.dirty}" "$commit" "$seconds"
