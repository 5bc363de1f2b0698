// Command clients asks the ways a Go program would: env URL, dialer PROXY URL, grpc-env TARGET, grpc-dialer PROXY TARGET;
// isolated WORDS is a program that knows no proxy; page COMMAND is a host outside the cluster for a browser.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"time"

	"golang.org/x/net/proxy"
)

func main() {
	client := &http.Client{Timeout: 20 * time.Second} // HTTP_PROXY and ALL_PROXY's socks5:// as net/http reads them
	url := os.Args[len(os.Args)-1]
	switch os.Args[1] {
	case "grpc-env":
		health(url, "")
		return
	case "isolated":
		isolated(os.Args[2:])
		return
	case "page":
		page(os.Args[2:])
		return
	case "grpc-dialer":
		health(url, os.Args[2])
		return
	}
	if os.Args[1] == "dialer" {
		dialer, err := proxy.SOCKS5("tcp", os.Args[2], nil, proxy.Direct)
		check(err)
		client.Transport = &http.Transport{DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return dialer.(proxy.ContextDialer).DialContext(ctx, network, addr)
		}}
	}
	answer, err := client.Get(url)
	check(err)
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	check(err)
	fmt.Println(answer.Status, string(text))
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
