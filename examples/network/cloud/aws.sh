#!/bin/sh
# AWS: a network interface with prefixes of source addresses. A /28 prefix is 16 addresses that the VPC routes to the
# interface. Needs the AWS CLI, and ENI, ALLOCATION and PRIVATE in the environment.
set -eu

# IPv6 needs no NAT: the addresses are public as they are.
aws ec2 assign-ipv6-addresses --network-interface-id "$ENI" --ipv6-prefix-count 1

# IPv4: private prefixes. The outside world sees the Elastic IP of each private address.
aws ec2 assign-private-ip-addresses --network-interface-id "$ENI" --ipv4-prefix-count 1
aws ec2 associate-address --allocation-id "$ALLOCATION" --network-interface-id "$ENI" --private-ip-address "$PRIVATE"

# The interface may only send from addresses that the VPC has assigned to it, such as those above. Only for a range of your
# own that a route of the VPC sends to this host, switch the check off:
#   aws ec2 modify-network-interface-attribute --network-interface-id "$ENI" --no-source-dest-check

# The host accepts packets for the prefix. The VPC's DHCP does not tell it to.
#   ip route add local 10.0.1.16/28 dev lo
#   ip -6 route add local 2600:1f14:0:100:1::/80 dev lo
