package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"runtime"
	"strings"
)

// image OUT NAME ENTRYPOINT PATH=FILE|PATH=@LINK... writes a one-layer image that
// `ctr images import` takes (the docker-archive form).
func image(args []string) {
	if len(args) < 4 {
		fail("usage: image OUT NAME ENTRYPOINT PATH=FILE...")
	}
	var layer bytes.Buffer
	tw := tar.NewWriter(&layer)
	for _, d := range []string{"tmp/", "etc/"} {
		check(tw.WriteHeader(&tar.Header{Name: d, Typeflag: tar.TypeDir, Mode: 0o777}))
	}
	for _, a := range args[3:] {
		to, from, _ := strings.Cut(a, "=")
		if link, ok := strings.CutPrefix(from, "@"); ok {
			check(tw.WriteHeader(&tar.Header{Name: to, Typeflag: tar.TypeSymlink, Linkname: link}))
			continue
		}
		b, err := os.ReadFile(from)
		check(err)
		check(tw.WriteHeader(&tar.Header{Name: to, Mode: 0o755, Size: int64(len(b))}))
		_, err = tw.Write(b)
		check(err)
	}
	check(tw.Close())
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH, "os": "linux",
		"config": map[string]any{"Entrypoint": []string{args[2]}, "Env": []string{"PATH=/"}, "WorkingDir": "/"},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer.Bytes()))}},
	})
	check(err)
	manifest, err := json.Marshal([]any{map[string]any{"Config": "config.json", "RepoTags": []string{args[1]}, "Layers": []string{"layer.tar"}}})
	check(err)
	f, err := os.Create(args[0])
	check(err)
	out := tar.NewWriter(f)
	for _, e := range []struct {
		name string
		b    []byte
	}{{"layer.tar", layer.Bytes()}, {"config.json", config}, {"manifest.json", manifest}} {
		check(out.WriteHeader(&tar.Header{Name: e.name, Mode: 0o644, Size: int64(len(e.b))}))
		_, err = out.Write(e.b)
		check(err)
	}
	check(out.Close())
	check(f.Close())
}
