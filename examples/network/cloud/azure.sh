#!/bin/sh
# Azure: secondary IP configurations of a network interface, each with a private and a public address. Needs the Azure
# CLI, and GROUP, NIC, SUBNET and VNET in the environment.
set -eu
for number in 1 2 3 4; do
	az network public-ip create --resource-group "$GROUP" --name "egress-$number" --sku Standard --allocation-method Static
	az network nic ip-config create --resource-group "$GROUP" --nic-name "$NIC" --name "egress-$number" \
		--vnet-name "$VNET" --subnet "$SUBNET" --private-ip-address "10.0.1.$((19 + number))" \
		--public-ip-address "egress-$number"
done

# Azure's DHCP gives the host the first address only:
#   ip address add 10.0.1.20/32 dev eth0
