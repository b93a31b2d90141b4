# shellcheck shell=bash disable=SC2034,SC2154
FEATURES=""
# shellcheck source=benches/compare/contenders/outgate.sh
source "$contenders/outgate.sh"
supports=plain
