// Command guest is what some clients want to find in a Pod and the echo program is not: a gRPC server (health
// checking) on :50051, SSH on :2222, and over plain HTTP on :8080 a Git repository, at /demo.git, and the part of a web
// page, at /part.js.
package main

import (
	"bytes"
	"compress/zlib"
	"crypto/sha1"
	"fmt"
	"log"
	"net"
	"net/http"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
)

func main() {
	server := grpc.NewServer()
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { log.Fatal(server.Serve(listen(":50051"))) }()
	go serveSSH(listen(":2222"))
	mux := repository()
	mux.HandleFunc("/part.js", part)
	log.Fatal(http.ListenAndServe(":8080", mux))
}

func listen(addr string) net.Listener {
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		log.Fatal(err)
	}
	return listener
}

// part adds a line to the page that asks for it, with the name it was asked by.
func part(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/javascript")
	fmt.Fprintf(w, "document.body.append(%q)\n", "part of "+r.Host+";")
}

// repository serves one commit with one file, as files, which is all that git's "dumb" protocol asks for.
func repository() *http.ServeMux {
	mux := http.NewServeMux()
	serve := func(path string, content []byte) {
		mux.HandleFunc("/demo.git/"+path, func(w http.ResponseWriter, r *http.Request) { w.Write(content) })
	}
	object := func(kind string, content []byte) [sha1.Size]byte {
		whole := append(fmt.Appendf(nil, "%s %d\x00", kind, len(content)), content...)
		sum := sha1.Sum(whole)
		var packed bytes.Buffer
		w := zlib.NewWriter(&packed)
		w.Write(whole)
		w.Close()
		name := fmt.Sprintf("%x", sum)
		serve("objects/"+name[:2]+"/"+name[2:], packed.Bytes())
		return sum
	}
	file := object("blob", []byte("cloned from a Pod\n"))
	tree := object("tree", append([]byte("100644 README\x00"), file[:]...))
	who := "guest <guest@example.test> 1700000000 +0000"
	commit := object("commit", fmt.Appendf(nil, "tree %x\nauthor %s\ncommitter %s\n\nfirst\n", tree, who, who))
	serve("HEAD", []byte("ref: refs/heads/main\n"))
	serve("info/refs", fmt.Appendf(nil, "%x\trefs/heads/main\n", commit))
	return mux
}
