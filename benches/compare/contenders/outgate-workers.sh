# Two workers, on both cores. The load shares them: only the CPU time of a delivery says something.
# shellcheck shell=bash disable=SC2034,SC2153,SC2154
WORKERS=2
# shellcheck source=benches/compare/contenders/outgate.sh
source "$contenders/outgate.sh"
supports="plain tls"
proxy_core=$PROXY_CORE,$LOAD_CORE
load_core=$PROXY_CORE,$LOAD_CORE
