// Command echo is what the test pods run: HTTP on $PORTS, raw TCP echo on
// $TCP_PORTS, and so on below. Called as "pause" (or with that word) it is the pod
// sandbox and the node's init: it reaps children and waits. Called as "cat" it is
// a small cat, so that `kubectl exec` has something to run.
package main

import (
	"bufio"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var host, _ = os.Hostname()

func main() {
	name := filepath.Base(os.Args[0])
	if len(os.Args) == 2 && os.Args[1] == "pause" {
		name = "pause"
	}
	switch name {
	case "pause":
		pause()
	case "cat":
		for _, f := range os.Args[1:] {
			b, err := os.ReadFile(f)
			if err != nil {
				log.Fatal(err)
			}
			os.Stdout.Write(b)
		}
		if len(os.Args) == 1 {
			io.Copy(os.Stdout, os.Stdin)
		}
		return
	}
	start := time.Now()
	delay, _ := time.ParseDuration(os.Getenv("READY_AFTER"))
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{
			"service": os.Getenv("NAME"), "hostname": host, "ip": podIP(), "local": fmt.Sprint(local),
			"remote": r.RemoteAddr, "host": r.Host, "method": r.Method, "path": r.URL.RequestURI(), "proto": r.Proto,
		})
	})
	mux.HandleFunc("/ready", func(w http.ResponseWriter, r *http.Request) {
		if os.Getenv("NEVER_READY") != "" || time.Since(start) < delay {
			http.Error(w, "not ready", http.StatusServiceUnavailable)
		}
	})
	mux.HandleFunc("/bytes", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.FormValue("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		io.CopyN(w, &pattern{}, n)
	})
	mux.HandleFunc("/sink", func(w http.ResponseWriter, r *http.Request) { // ?ms=pause before the body is read
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprintln(w, n)
		if err != nil {
			log.Print("sink: ", err)
		}
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) {
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		time.Sleep(time.Duration(ms) * time.Millisecond)
		fmt.Fprintln(w, "slept", ms)
	})
	mux.HandleFunc("/sse", func(w http.ResponseWriter, r *http.Request) { // ?n=events&ms=gap, n=0 is for ever
		n, _ := strconv.Atoi(r.FormValue("n"))
		ms, _ := strconv.Atoi(r.FormValue("ms"))
		w.Header().Set("Content-Type", "text/event-stream")
		for i := 1; n == 0 || i <= n; i++ {
			if _, err := fmt.Fprintf(w, "data: %d %s\n\n", i, host); err != nil {
				return
			}
			w.(http.Flusher).Flush()
			select {
			case <-r.Context().Done():
				return
			case <-time.After(time.Duration(max(ms, 1)) * time.Millisecond):
			}
		}
	})
	mux.HandleFunc("/ws", websocket)
	mux.HandleFunc("/count", count)
	mux.HandleFunc("/lab.Echo/Say", say)
	for _, p := range list("PORTS") {
		server := &http.Server{Addr: ":" + p, Handler: mux, Protocols: new(http.Protocols)}
		server.Protocols.SetHTTP1(true)
		server.Protocols.SetUnencryptedHTTP2(true) // with prior knowledge, as gRPC speaks it
		go func() { log.Fatal(server.ListenAndServe()) }()
	}
	for _, p := range list("TCP_PORTS") { // reads to the end, then answers, then closes: needs half-close
		serve(":"+p, func(c *net.TCPConn) {
			b, err := io.ReadAll(c)
			if err != nil {
				log.Print("tcp: ", err)
			}
			c.Write(b)
		})
	}
	for _, p := range list("STREAM_PORTS") { // plain echo, byte for byte as it comes
		serve(":"+p, func(c *net.TCPConn) { io.Copy(c, c) })
	}
	for _, p := range list("POD_IP_PORTS") { // the same, on the Pod's own address and not on loopback
		serve(net.JoinHostPort(podIP(), p), func(c *net.TCPConn) { io.Copy(c, c) })
	}
	for _, p := range list("GREET_PORTS") { // the server speaks first, then echoes lines
		serve(":"+p, func(c *net.TCPConn) {
			fmt.Fprintf(c, "220 %s ready\r\n", host)
			io.Copy(c, c)
		})
	}
	for _, p := range list("RESET_PORTS") { // takes one byte, then resets the connection
		serve(":"+p, func(c *net.TCPConn) {
			c.Read(make([]byte, 1))
			c.SetLinger(0)
		})
	}
	for _, p := range list("CLOSE_PORTS") { // one HTTP answer, then a close that no field has announced
		serve(":"+p, func(c *net.TCPConn) {
			r, err := http.ReadRequest(bufio.NewReader(c))
			if err != nil {
				return
			}
			n, _ := io.Copy(io.Discard, r.Body)
			body := fmt.Sprintf("%s %d\n", r.Method, n)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		})
	}
	log.Printf("echo %s %s http=%v tcp=%v stream=%v podip=%v greet=%v reset=%v close=%v", host, podIP(), list("PORTS"), list("TCP_PORTS"), list("STREAM_PORTS"), list("POD_IP_PORTS"), list("GREET_PORTS"), list("RESET_PORTS"), list("CLOSE_PORTS"))
	term := make(chan os.Signal, 1)
	signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
	<-term
}

func list(env string) []string {
	return strings.FieldsFunc(os.Getenv(env), func(r rune) bool { return r == ',' || r == ' ' })
}

func podIP() string {
	addrs, _ := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && !n.IP.IsLoopback() && n.IP.To4() != nil {
			return n.IP.String()
		}
	}
	return ""
}

func serve(addr string, f func(*net.TCPConn)) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		log.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				log.Fatal(err)
			}
			go func() { defer c.Close(); f(c.(*net.TCPConn)) }()
		}
	}()
}

// pattern is an endless stream of the same 64 KiB, each byte i*7+i>>8, so that a
// shift or a lost piece shows.
type pattern struct{ off int }

var block = func() []byte {
	b := make([]byte, 64<<10)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}()

func (s *pattern) Read(p []byte) (int, error) {
	n := copy(p, block[s.off%len(block):])
	s.off += n
	return n, nil
}

// count sends n bytes of which every eight say their own place, or checks those it
// is sent: whatever is lost, doubled or moved shows.
func count(w http.ResponseWriter, r *http.Request) {
	buf := make([]byte, 64<<10)
	at := uint64(0)
	fill := func() {
		for i := 0; i < len(buf); i += 8 {
			binary.BigEndian.PutUint64(buf[i:], at+uint64(i))
		}
	}
	if r.Method == http.MethodGet {
		n, _ := strconv.ParseUint(r.FormValue("n"), 10, 64)
		w.Header().Set("Content-Length", strconv.FormatUint(n, 10))
		for at < n {
			fill()
			size := min(uint64(len(buf)), n-at)
			if _, err := w.Write(buf[:size]); err != nil {
				return
			}
			at += size
		}
		return
	}
	got := make([]byte, len(buf))
	for {
		n, err := io.ReadFull(r.Body, got)
		fill()
		if i := differ(got[:n], buf[:n]); i >= 0 {
			fmt.Fprintln(w, "wrong at", at+uint64(i))
			return
		}
		at += uint64(n)
		if err != nil {
			fmt.Fprintln(w, at)
			return
		}
	}
}

func differ(a, b []byte) int {
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// say is a gRPC method: it answers every message of the stream with the same message,
// as it comes, and ends with trailers.
func say(w http.ResponseWriter, r *http.Request) {
	if r.ProtoMajor != 2 {
		http.Error(w, "gRPC is HTTP/2", http.StatusHTTPVersionNotSupported)
		return
	}
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set("Trailer", "Grpc-Status, Grpc-Message")
	w.WriteHeader(http.StatusOK)
	w.(http.Flusher).Flush()
	head := make([]byte, 5)
	for {
		if _, err := io.ReadFull(r.Body, head); err != nil {
			break
		}
		n := binary.BigEndian.Uint32(head[1:])
		if n > 16<<20 {
			w.Header().Set("Grpc-Status", "8")
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r.Body, b); err != nil {
			break
		}
		w.Write(append(head[:5:5], b...))
		w.(http.Flusher).Flush()
	}
	w.Header().Set("Grpc-Status", "0")
	w.Header().Set("Grpc-Message", "said")
}

// websocket echoes frames: enough of RFC 6455 for a test (no fragments joined).
func websocket(w http.ResponseWriter, r *http.Request) {
	key := r.Header.Get("Sec-WebSocket-Key")
	if key == "" {
		http.Error(w, "a websocket endpoint", http.StatusUpgradeRequired)
		return
	}
	c, rw, err := w.(http.Hijacker).Hijack()
	if err != nil {
		return
	}
	defer c.Close()
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	fmt.Fprintf(rw, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n", base64.StdEncoding.EncodeToString(sum[:]))
	rw.Flush()
	for {
		h := make([]byte, 2)
		if _, err := io.ReadFull(rw, h); err != nil {
			return
		}
		n := uint64(h[1] & 0x7f)
		for ext := map[uint64]int{126: 2, 127: 8}[n]; ext > 0; ext = 0 {
			b := make([]byte, ext)
			if _, err := io.ReadFull(rw, b); err != nil {
				return
			}
			n = 0
			for _, x := range b {
				n = n<<8 | uint64(x)
			}
		}
		var mask [4]byte
		if h[1]&0x80 != 0 {
			if _, err := io.ReadFull(rw, mask[:]); err != nil {
				return
			}
		}
		if n > 16<<20 {
			return
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(rw, b); err != nil {
			return
		}
		for i := range b {
			b[i] ^= mask[i%4]
		}
		if h[0]&0xf == 9 { // ping
			h[0] = h[0]&0xf0 | 10
		}
		out := []byte{h[0]}
		switch {
		case n < 126:
			out = append(out, byte(n))
		case n < 1<<16:
			out = append(out, 126, byte(n>>8), byte(n))
		default:
			out = append(out, 127, byte(n>>56), byte(n>>48), byte(n>>40), byte(n>>32), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
		}
		rw.Write(append(out, b...))
		if rw.Flush() != nil || h[0]&0xf == 8 { // close
			return
		}
	}
}

func pause() {
	go func() {
		term := make(chan os.Signal, 1)
		signal.Notify(term, syscall.SIGTERM, syscall.SIGINT)
		<-term
		os.Exit(0)
	}()
	chld := make(chan os.Signal, 1)
	signal.Notify(chld, syscall.SIGCHLD)
	for {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); err != nil || pid <= 0 {
				break
			}
		}
		select {
		case <-chld:
		case <-time.After(5 * time.Second):
		}
	}
}
