{ lib, rustPlatform, fetchurl, installShellFiles }:

rustPlatform.buildRustPackage rec {
  pname = "kubevpn-proxy-out";
  version = "@VERSION@";

  src = fetchurl {
    url = "@URL@/kubevpn-${version}.tar.gz";
    sha256 = "@SOURCE_SHA256@";
  };

  cargoLock.lockFile = ./Cargo.lock;
  # The profile of packages.
  buildType = "dist";
  cargoBuildFlags = [ "-p" "kubevpn" ];
  # The tests want curl, dig and loopback; .ci/run runs them.
  doCheck = false;

  nativeBuildInputs = [ installShellFiles ];

  postInstall = ''
    mkdir man
    $out/bin/kubevpn man man
    installManPage man/*.1
    installShellCompletion --cmd kubevpn \
      --bash <($out/bin/kubevpn completion bash) \
      --zsh <($out/bin/kubevpn completion zsh) \
      --fish <($out/bin/kubevpn completion fish)
  '';

  meta = {
    description = "Proxy to the Services and Pods of a Kubernetes cluster";
    homepage = "@HOME@";
    license = lib.licenses.asl20;
    mainProgram = "kubevpn";
    platforms = lib.platforms.unix;
  };
}
