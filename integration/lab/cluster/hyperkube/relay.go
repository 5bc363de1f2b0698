package main

import (
	"io"
	"net"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// relay NETNS LISTEN DIAL accepts in the network namespace file NETNS and dials
// in its own, copying both ways and passing half-closes on.
func relay(args []string) {
	if len(args) != 3 {
		fail("usage: relay NETNS LISTEN DIAL")
	}
	var l net.Listener
	done := make(chan error)
	go func() { // the thread is spoiled by setns: never unlocked, so it ends with this goroutine
		runtime.LockOSThread()
		f, err := os.Open(args[0])
		if err == nil {
			err = unix.Setns(int(f.Fd()), unix.CLONE_NEWNET)
		}
		if err == nil {
			l, err = net.Listen("tcp", args[1])
		}
		done <- err
	}()
	check(<-done)
	for {
		in, err := l.Accept()
		check(err)
		go func() {
			defer in.Close()
			out, err := net.DialTimeout("tcp", args[2], 5*time.Second)
			if err != nil {
				in.(*net.TCPConn).SetLinger(0)
				return
			}
			defer out.Close()
			end := make(chan struct{}, 2)
			pipe := func(dst, src net.Conn) {
				if _, err := io.Copy(dst, src); err != nil && !strings.Contains(err.Error(), "closed") {
					in.Close()
					out.Close()
				}
				dst.(*net.TCPConn).CloseWrite()
				end <- struct{}{}
			}
			go pipe(out, in)
			go pipe(in, out)
			<-end
			<-end
		}()
	}
}
