//! What the clients need in the cluster beyond the sample workload: Redis, made of Debian's package, and a program
//! of ours that speaks gRPC and has a Git repository.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tracing::info;

use crate::Lab;
use crate::binaries::{lock, publish};
use crate::command::{BUILD_LIMIT, command, output, output_of_input, output_within};

/// Where Debian's loader looks.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

impl Lab {
    /// Builds their images, brings them into the node, and waits until they are ready. `debian` has
    /// `usr/bin/redis-server` and the libraries a small Debian lacks.
    pub(crate) async fn guests(&self, debian: &Path) -> Result<()> {
        let cache = self.settings.cache();
        let lock = lock(cache.join("lock")).await?;
        let guest = self.built("guest")?;
        if !guest.exists() {
            info!("building guest");
            let mut go = self.go_build("guest")?;
            publish(&guest, async |to| {
                output_within(BUILD_LIMIT, go.arg("-o").arg(to).arg(".")).await
            })
            .await?;
        }
        let name = guest.file_name().context("it has a name")?;
        let of_guest = cache.join("images").join(name).with_extension("tar");
        let redis = cache.join("images/redis-debian.tar");
        let images = [
            ("guest", of_guest, vec![("guest".to_owned(), guest)]),
            ("redis", redis, redis_files(debian).await?),
        ];
        for (name, image, files) in &images {
            if !image.exists() {
                publish(image, async |to| {
                    let entry = if *name == "redis" {
                        "redis-server"
                    } else {
                        name
                    };
                    let mut tool = self.hyperkube(&["image"]);
                    tool.arg(to)
                        .arg(format!("lab.local/{name}:1"))
                        .arg(format!("/{entry}"));
                    for (path, file) in files {
                        tool.arg(format!("{path}={}", file.display()));
                    }
                    output(&mut tool).await
                })
                .await?;
            }
            let import = ["ctr", "--namespace", "k8s.io", "images", "import"];
            output(self.enter(import)?.arg(image)).await?;
        }
        drop(lock);
        let manifest = self.render("manifests/clients.yaml")?;
        output_of_input(&mut self.kubectl_command(&["apply", "-f", "-"]), &manifest).await?;
        for name in ["deployment/redis", "deployment/guest"] {
            self.kubectl(&["rollout", "status", name, "--timeout=120s"])
                .await?;
        }
        Ok(())
    }
}

/// The server, its libraries and their loader, each with its place in the image.
async fn redis_files(debian: &Path) -> Result<Vec<(String, PathBuf)>> {
    let server = debian.join("usr/bin/redis-server");
    let mut ldd = command("ldd")?;
    ldd.env("LD_LIBRARY_PATH", debian.join("usr").join(LIBRARIES));
    let listed = output(ldd.arg(&server)).await?;
    let mut files = vec![("redis-server".to_owned(), server)];
    for line in listed.lines() {
        let (name, path) = line.split_once(" => ").unwrap_or((line, line));
        let path = path.split_whitespace().next().unwrap_or_default();
        anyhow::ensure!(path != "not", "this machine lacks {}", name.trim());
        let file = Path::new(path);
        if !file.is_absolute() {
            continue; // the kernel's own
        }
        let name = file.file_name().context("a library has a name")?;
        let dir = if path.starts_with("/lib64") {
            "lib64"
        } else {
            LIBRARIES
        };
        files.push((format!("{dir}/{}", name.display()), file.canonicalize()?));
    }
    Ok(files)
}
