// net/http of Go's standard library. OUTGATE_PROXY: the URL of the proxy with the client and its token,
// http://billing:TOKEN@HOST:4750. TARGET: the URL of the receiver. OUTGATE_CA: a file of authorities to trust besides
// the system's.
package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

func main() {
	log.SetFlags(0)
	proxy, err := url.Parse(os.Getenv("OUTGATE_PROXY"))
	if err != nil {
		log.Fatal(err)
	}
	transport := &http.Transport{Proxy: http.ProxyURL(proxy)}
	if path := os.Getenv("OUTGATE_CA"); path != "" {
		roots, err := x509.SystemCertPool()
		if err != nil {
			log.Fatal(err)
		}
		pem, err := os.ReadFile(path)
		if err != nil {
			log.Fatal(err)
		}
		roots.AppendCertsFromPEM(pem)
		transport.TLSClientConfig = &tls.Config{RootCAs: roots}
	}
	client := &http.Client{
		Transport: transport,
		Timeout:   130 * time.Second, // longer than outgate's own `timeouts.total`
		CheckRedirect: func(*http.Request, []*http.Request) error {
			return http.ErrUseLastResponse
		},
	}

	request, err := http.NewRequest("POST", os.Getenv("TARGET"), strings.NewReader(`{"type":"ping"}`))
	if err != nil {
		log.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Outgate-TLS", "1") // if TARGET is an http:// URL, outgate uses https to the receiver
	request.Header.Set("Outgate-Tenant", "acme")
	response, err := client.Do(request)
	if err != nil {
		log.Fatal("not delivered: ", err) // a refused CONNECT: the text has its reason
	}
	defer response.Body.Close()
	fmt.Println(response.StatusCode)
	for _, name := range []string{"Outgate-Error", "Outgate-Egress", "Outgate-Request-Id"} {
		if value := response.Header.Get(name); value != "" {
			fmt.Printf("%s: %s\n", name, value)
		}
	}
}
