package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"log"
	"net"

	"golang.org/x/crypto/ssh"
)

// serveSSH lets anybody in, and answers every command with a greeting that names it.
func serveSSH(listener net.Listener) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		log.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		log.Fatal(err)
	}
	config := &ssh.ServerConfig{NoClientAuth: true}
	config.AddHostKey(signer)
	for {
		conn, err := listener.Accept()
		if err != nil {
			log.Fatal(err)
		}
		go session(conn, config)
	}
}

func session(conn net.Conn, config *ssh.ServerConfig) {
	defer conn.Close()
	_, channels, requests, err := ssh.NewServerConn(conn, config)
	if err != nil {
		log.Print("ssh: ", err) // a probe, as a rule
		return
	}
	go ssh.DiscardRequests(requests)
	for offered := range channels {
		if offered.ChannelType() != "session" {
			offered.Reject(ssh.UnknownChannelType, "sessions only")
			continue
		}
		channel, requests, err := offered.Accept()
		if err != nil {
			return
		}
		go answer(channel, requests)
	}
}

func answer(channel ssh.Channel, requests <-chan *ssh.Request) {
	defer channel.Close()
	for request := range requests {
		var command struct{ Line string }
		if request.Type != "exec" || ssh.Unmarshal(request.Payload, &command) != nil {
			request.Reply(false, nil)
			continue
		}
		request.Reply(true, nil)
		channel.Write([]byte("ran in a Pod: " + command.Line + "\n"))
		channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Code uint32 }{}))
		return
	}
}
