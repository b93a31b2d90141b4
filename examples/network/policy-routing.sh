#!/bin/sh
# Two uplinks: connections from each range leave by the uplink that its responses come back to. Without the rules, all
# of them leave by the default route, and the provider there drops packets from the other's addresses (BCP 38).
set -eu
ip route replace default via 192.0.2.1 dev eth0
ip route replace local 198.51.100.16/28 dev lo

ip route replace default via 203.0.113.1 dev eth1 table 100
ip route replace local 203.0.113.64/28 dev lo
# A rule that is there already would be added a second time.
ip rule del from 203.0.113.64/28 lookup 100 priority 1000 2>/dev/null || true
ip rule add from 203.0.113.64/28 lookup 100 priority 1000

# A strict reverse-path filter would drop packets that come in by an uplink other than the default route's.
sysctl -w net.ipv4.conf.eth0.rp_filter=2 net.ipv4.conf.eth1.rp_filter=2
