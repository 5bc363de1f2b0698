package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
	"time"
)

// isolated is what a program does in a network of its own: dial HOST:PORT reads a greeting, half-close HOST:PORT ends its
// request, and its writing, before the answer comes, reset HOST:PORT is refused, many HOST:PORT COUNT AT-ONCE echoes on that many connections,
// lookup NAME asks Go's own resolver, udp HOST:PORT sends a datagram.
func isolated(words []string) {
	target := words[1]
	switch words[0] {
	case "dial":
		c := dial(target)
		greeting := make([]byte, 64)
		n, err := c.Read(greeting)
		check(err)
		fmt.Println(string(greeting[:n]))
	case "half-close":
		c := dial(target)
		_, err := io.WriteString(c, "GET /slow?ms=1500 HTTP/1.0\r\n\r\n")
		check(err)
		check(c.(*net.TCPConn).CloseWrite())
		answer, err := io.ReadAll(c)
		check(err)
		fmt.Printf("after the end of the request: %q\n", answer)
	case "reset":
		_, err := dial(target).Read(make([]byte, 1))
		fmt.Println("reset:", errors.Is(err, syscall.ECONNRESET))
	case "many":
		many(target, number(words[2]), number(words[3]))
	case "lookup":
		resolver := net.Resolver{PreferGo: true}
		ips, err := resolver.LookupHost(context.Background(), target)
		check(err)
		fmt.Println("found", ips)
	case "udp":
		c, err := net.Dial("udp", target)
		check(err)
		var took time.Duration
		for range 100 { // the first has to be read from disk
			start := time.Now()
			_, err = c.Write([]byte("x"))
			took = time.Since(start)
			if !errors.Is(err, syscall.EPERM) {
				check(fmt.Errorf("not refused: %w", err))
			}
		}
		fmt.Printf("UDP is refused in %d µs\n", took.Microseconds())
	}
}

func dial(target string) net.Conn {
	c, err := net.DialTimeout("tcp", target, 20*time.Second)
	check(err)
	check(c.SetDeadline(time.Now().Add(50 * time.Second)))
	return c
}

// many has AT-ONCE connections open at a time.
func many(target string, count, atOnce int) {
	start := time.Now()
	var all sync.WaitGroup
	places := make(chan bool, atOnce)
	for i := range count {
		places <- true
		all.Go(func() {
			c := dial(target)
			word := fmt.Sprintf("connection %5d", i)
			_, err := io.WriteString(c, word)
			check(err)
			echo := make([]byte, len(word))
			_, err = io.ReadFull(c, echo)
			check(err)
			if string(echo) != word {
				check(fmt.Errorf("%q is answered by %q", word, echo))
			}
			c.Close()
			<-places
		})
	}
	all.Wait()
	fmt.Printf("%d connections echoed, %d at once, in %.1f s\n", count, atOnce, time.Since(start).Seconds())
}

func number(text string) (n int) {
	_, err := fmt.Sscan(text, &n)
	check(err)
	return n
}
