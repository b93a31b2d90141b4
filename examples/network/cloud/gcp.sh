#!/bin/sh
# Google Cloud: an alias IP range of a virtual machine. Needs gcloud, and VM, ZONE, ALIAS (10.0.1.16/28) in the
# environment. An alias range has no external addresses: Cloud NAT translates it, and `egress verify --echo` shows to
# which address. External IPv6 addresses need no translation.
set -eu
gcloud compute instances network-interfaces update "$VM" --zone "$ZONE" --aliases "$ALIAS"

# The guest agent adds the local route by itself (`[IpForwarding] ip_aliases = true` in instance_configs.cfg). Without the
# agent:
#   ip route add local 10.0.1.16/28 dev lo
