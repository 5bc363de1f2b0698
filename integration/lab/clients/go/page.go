package main

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
)

// page is a host outside the cluster while COMMAND runs: a web server on a free port of this machine, $PORT, whose page
// has parts of two Services, by five names, and of its own, by six that are no names of the cluster. All names resolve to
// this machine, so that a part that goes the wrong way is missing.
func page(command []string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	_, port, err := net.SplitHostPort(listener.Addr().String())
	check(err)
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, "<!doctype html><head>")
		for _, host := range []string{
			"guest.default.svc.cluster.local", "GUEST.Default", "parts.default.svc", "parts", "parts.default.svc.cluster.local.",
			r.Host, "cluster.local." + r.Host, "xcluster.local:" + port, "svc:" + port, "guest.default.test:" + port,
			"192.0.2.1:" + port,
		} {
			fmt.Fprintf(w, "<script defer src='http://%s/part.js'></script>", host)
		}
		fmt.Fprint(w, "</head><body></body>")
	})
	http.HandleFunc("/part.js", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		name, _, _ := strings.Cut(r.Host, ":")
		fmt.Fprintf(w, "document.body.append(%q)", "part of "+name+";")
	})
	go func() { check(http.Serve(listener, nil)) }()
	child := exec.Command(command[0], command[1:]...)
	child.Env = append(os.Environ(), "PORT="+port)
	child.Stdout, child.Stderr = os.Stdout, os.Stderr
	check(child.Run())
}
