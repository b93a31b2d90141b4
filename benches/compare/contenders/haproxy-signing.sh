# HAProxy that signs each body with HMAC-SHA256: it does the same work as outgate.
# shellcheck shell=bash disable=SC2034,SC2154
# shellcheck source=benches/compare/contenders/haproxy.sh
source "$contenders/haproxy.sh"
supports="plain tls tls-new tls-tickets rate"
sign='    option http-buffer-request
    http-request set-header Webhook-Signature sha256=%[req.body,hmac(sha256,MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=),hex]
'
measure_options+=(--signs)
