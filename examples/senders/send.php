<?php
// The curl extension. OUTGATE_PROXY: the URL of the proxy with the client and its token, http://billing:TOKEN@HOST:4750.
// TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust in place of the system's.

$fields = [];
$curl = curl_init(getenv('TARGET'));
curl_setopt_array($curl, [
    CURLOPT_PROXY => getenv('OUTGATE_PROXY'),
    CURLOPT_POSTFIELDS => json_encode(['type' => 'ping']),
    CURLOPT_HTTPHEADER => [
        'Outgate-TLS: 1', // if TARGET is an http:// URL, outgate uses https to the receiver
        'Outgate-Tenant: acme',
        'Content-Type: application/json',
    ],
    CURLOPT_RETURNTRANSFER => true,
    CURLOPT_TIMEOUT => 130, // longer than outgate's own `timeouts.total`
    // Also gets the response to a CONNECT.
    CURLOPT_HEADERFUNCTION => function ($curl, string $line) use (&$fields): int {
        [$name, $value] = explode(':', $line, 2) + [1 => ''];
        $fields[strtolower($name)] = trim($value);
        return strlen($line);
    },
]);
if (getenv('OUTGATE_CA')) {
    curl_setopt($curl, CURLOPT_CAINFO, getenv('OUTGATE_CA'));
    curl_setopt($curl, CURLOPT_PROXY_CAINFO, getenv('OUTGATE_CA'));
}
$delivered = curl_exec($curl) !== false;
echo curl_getinfo($curl, $delivered ? CURLINFO_RESPONSE_CODE : CURLINFO_HTTP_CONNECTCODE), "\n";
foreach (['Outgate-Error', 'Outgate-Egress', 'Outgate-Request-Id'] as $name) {
    if (isset($fields[strtolower($name)])) {
        echo "$name: {$fields[strtolower($name)]}\n";
    }
}
if (!$delivered) {
    fwrite(STDERR, 'not delivered: ' . curl_error($curl) . "\n");
    exit(1);
}
