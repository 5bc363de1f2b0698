// Command runc runs another runc, for containerd 2 on a machine without cgroup
// controllers: containerd 2 has no disable_cgroup, so the limits are taken out of the bundle before
// the container is created.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// real is set by the linker; containerd gives runc an environment of its own.
var real string

func main() {
	if err := run(os.Args); err != nil {
		fmt.Fprintln(os.Stderr, "runc:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	create, bundle := false, ""
	for i, arg := range args {
		switch {
		case arg == "create":
			create = true
		case arg == "--bundle" && i+1 < len(args):
			bundle = args[i+1]
		}
	}
	if create {
		if err := dropResources(filepath.Join(bundle, "config.json")); err != nil {
			return err
		}
	}
	return syscall.Exec(real, args, os.Environ())
}

func dropResources(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec map[string]json.RawMessage
	if err := json.Unmarshal(text, &spec); err != nil {
		return err
	}
	var linux map[string]json.RawMessage
	if err := json.Unmarshal(spec["linux"], &linux); err != nil {
		return err
	}
	delete(linux, "resources")
	if spec["linux"], err = json.Marshal(linux); err != nil {
		return err
	}
	if text, err = json.Marshal(spec); err != nil {
		return err
	}
	return os.WriteFile(file, text, 0o600)
}
