// net/http of Go's standard library. It sends its credentials with the first request, and reads while it writes.
package main

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"
)

type request struct {
	Method  string            `json:"method"`
	URL     string            `json:"url"`
	Headers map[string]string `json:"headers"`
	Body    *string           `json:"body"`
}

type answer struct {
	Status  int               `json:"status"`
	Headers map[string]string `json:"headers"`
	Body    string            `json:"body"`
	Error   string            `json:"error"`
}

func send(client *http.Client, one request) (*answer, error) {
	var body io.Reader
	if one.Body != nil {
		body = strings.NewReader(*one.Body)
	}
	asked, err := http.NewRequest(one.Method, one.URL, body)
	if err != nil {
		return nil, err
	}
	for name, value := range one.Headers {
		asked.Header.Set(name, value)
	}
	got, err := client.Do(asked)
	if err != nil {
		return nil, err
	}
	defer got.Body.Close()
	text, err := io.ReadAll(got.Body)
	if err != nil {
		return nil, err
	}
	headers := map[string]string{}
	for name, values := range got.Header {
		headers[strings.ToLower(name)] = strings.Join(values, ", ")
	}
	return &answer{Status: got.StatusCode, Headers: headers, Body: string(text)}, nil
}

// Arguments: the proxy's URL (empty: none), a CA file, the form. See exchange.py.
func main() {
	pem, err := os.ReadFile(os.Args[2])
	if err != nil {
		panic(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	if os.Args[1] != "" {
		proxy, err := url.Parse(os.Args[1])
		if err != nil {
			panic(err)
		}
		transport.Proxy = http.ProxyURL(proxy)
	}
	client := &http.Client{Transport: transport, Timeout: 20 * time.Second}
	lines, out := bufio.NewReader(os.Stdin), json.NewEncoder(os.Stdout)
	for {
		line, err := lines.ReadBytes('\n')
		if err != nil {
			return
		}
		var one request
		if err := json.Unmarshal(line, &one); err != nil {
			panic(err)
		}
		got, err := send(client, one)
		if err != nil {
			got = &answer{Error: err.Error()}
		}
		if err := out.Encode(got); err != nil {
			panic(err)
		}
	}
}
