// Command hyperkube is the whole control plane, the kubelet and kubectl in one
// file, plus the few small tools that the lab needs. It acts as whatever its
// first argument (or the name it is called by) says.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"
	"go.etcd.io/etcd/server/v3/etcdmain"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	kubectl "k8s.io/kubectl/pkg/cmd"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	kcm "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

var tools = map[string]func(args []string){"pki": pki, "user": user, "image": image, "fill": fill, "relay": relay}

func main() {
	// "hyperkube kubectl get pods" and a link named "kubectl" called with "get pods" are the same.
	name := filepath.Base(os.Args[0])
	if name != "kubectl" {
		if len(os.Args) < 2 {
			fail("usage: hyperkube etcd|kube-apiserver|kube-controller-manager|kube-scheduler|kubelet|kubectl|pki|user|image|fill|relay ...")
		}
		name, os.Args = os.Args[1], os.Args[1:]
	}
	if tool, ok := tools[name]; ok {
		tool(os.Args[1:])
		return
	}
	var c *cobra.Command
	switch name {
	case "etcd":
		etcdmain.Main(os.Args)
		return
	case "kube-apiserver":
		c = apiserver.NewAPIServerCommand()
	case "kube-controller-manager":
		c = kcm.NewControllerManagerCommand()
	case "kube-scheduler":
		c = scheduler.NewSchedulerCommand()
	case "kubelet":
		c = kubeletCommand(kubelet.NewKubeletCommand)
	case "kubectl":
		c = kubectl.NewDefaultKubectlCommand()
		if err := cli.RunNoErrOutput(c); err != nil {
			fail(err)
		}
		return
	default:
		fail("hyperkube: no such command: " + name)
	}
	os.Exit(cli.Run(c))
}

// kubeletCommand calls the constructor of this version of Kubernetes: it takes a context since 1.31.
func kubeletCommand(constructor any) *cobra.Command {
	if before, ok := constructor.(func() *cobra.Command); ok {
		return before()
	}
	// A plain context: cli.Run sets up the signals, and SetupSignalContext twice panics.
	return constructor.(func(context.Context) *cobra.Command)(context.Background())
}

func fail(v any) {
	fmt.Fprintln(os.Stderr, v)
	os.Exit(1)
}

func check(err error) {
	if err != nil {
		fail(err)
	}
}
