#!/bin/sh
# Gives a tenant its first signing key: new-tenant.sh TENANT [FOLDER]. outgate loads it within a second.
set -eu

folder=${2:-/etc/outgate/keys/tenants}
# outgate ignores a name that begins with a dot, so it sees the folder only when the key in it is whole.
mkdir --mode=750 "$folder/.$1"
# After a failure nothing stays, so that the next run can begin again. After the move there is nothing to remove.
trap 'rm -rf "$folder/.$1"' EXIT
trap 'exit 1' HUP INT TERM
chgrp --reference="$folder" "$folder/.$1"
outgate keys new --out "$folder/.$1/$(date --utc +%Y-%m).key"
mv --no-target-directory "$folder/.$1" "$folder/$1"
