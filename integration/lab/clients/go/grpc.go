package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"golang.org/x/net/proxy"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// health asks a gRPC server how it is: over the proxy of the environment (CONNECT), or over a SOCKS5 dialer.
func health(target, socks string) {
	options := []grpc.DialOption{grpc.WithTransportCredentials(insecure.NewCredentials())}
	if socks != "" {
		dialer, err := proxy.SOCKS5("tcp", socks, nil, proxy.Direct)
		check(err)
		target = "passthrough:///" + target // the name is the proxy's to resolve
		options = append(options, grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.(proxy.ContextDialer).DialContext(ctx, "tcp", addr)
		}))
	}
	conn, err := grpc.NewClient(target, options...)
	check(err)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	answer, err := grpc_health_v1.NewHealthClient(conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	check(err)
	fmt.Println(answer.Status)
}
