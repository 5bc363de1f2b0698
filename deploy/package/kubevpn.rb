class Kubevpn < Formula
  desc "Proxy to the Services and Pods of a Kubernetes cluster"
  homepage "@HOME@"
  url "@URL@/kubevpn-@VERSION@.tar.gz"
  sha256 "@SOURCE_SHA256@"
  license "Apache-2.0"

  depends_on "rust" => :build

  def install
    system "cargo", "install", "--profile", "dist", *std_cargo_args(path: "bin/kubevpn")
    generate_completions_from_executable(bin/"kubevpn", "completion")
    man1.mkpath
    system bin/"kubevpn", "man", man1
  end

  test do
    assert_match version.to_s, shell_output("#{bin}/kubevpn version")
    output = shell_output("#{bin}/kubevpn check --kubeconfig #{testpath}/none 2>&1", 20)
    assert_match "kubeconfig", output
  end
end
