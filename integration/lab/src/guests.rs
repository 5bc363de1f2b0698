//! What the clients need in the cluster beyond the sample workload: Redis and PostgreSQL, made of Debian's
//! packages, and a program of ours that speaks gRPC and SSH and has a Git repository and a web page.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tracing::info;

use crate::Lab;
use crate::binaries::{lock, publish};
use crate::command::{BUILD_LIMIT, command, output, output_of_input, output_within};

/// Where Debian's loader looks.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// Where Debian's PostgreSQL is, and finds the rest of itself.
const POSTGRES: &str = "usr/lib/postgresql/15";
const POSTGRES_SHARE: &str = "usr/share/postgresql/15";

/// Debian's packages, unpacked, each directory with the libraries that a small Debian lacks.
pub(crate) struct Unpacked {
    /// Has `usr/bin/redis-server`.
    pub(crate) redis: PathBuf,
    /// Has `usr/lib/postgresql/15`.
    pub(crate) postgres: PathBuf,
}

struct Image {
    name: &'static str,
    /// Changes with it, so that a cluster that is up does not go on with an older one.
    tag: String,
    /// Where it is kept.
    archive: PathBuf,
    /// Each with its place in the image; the first is what it runs.
    files: Vec<(String, PathBuf)>,
}

impl Lab {
    /// Builds their images, brings them into the node, and waits until they are ready.
    pub(crate) async fn guests(&self, debian: &Unpacked) -> Result<()> {
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
        let images = [
            Image {
                name: "guest",
                tag: name.display().to_string(),
                archive: of_guest,
                files: vec![("guest".to_owned(), guest)],
            },
            Image {
                name: "redis",
                tag: "1".to_owned(),
                archive: cache.join("images/redis-debian.tar"),
                files: redis_files(&debian.redis).await?,
            },
            Image {
                name: "postgres",
                tag: "1".to_owned(),
                archive: cache.join("images/postgres-debian.tar"),
                files: postgres_files(&debian.postgres).await?,
            },
        ];
        for Image {
            name,
            tag,
            archive,
            files,
        } in &images
        {
            if !archive.exists() {
                let (entry, _) = files.first().context("an image has a file")?;
                publish(archive, async |to| {
                    let mut tool = self.hyperkube(&["image"]);
                    tool.arg(to)
                        .arg(format!("lab.local/{name}:{tag}"))
                        .arg(format!("/{entry}"));
                    for (path, file) in files {
                        tool.arg(format!("{path}={}", file.display()));
                    }
                    output(&mut tool).await
                })
                .await?;
            }
            let import = ["ctr", "--namespace", "k8s.io", "images", "import"];
            output(self.enter(import)?.arg(archive)).await?;
        }
        drop(lock);
        let mut manifest = self.render("manifests/clients.yaml")?;
        for Image { name, tag, .. } in &images {
            let image = format!("lab.local/{name}:");
            manifest = manifest.replace(&format!("{image}1"), &format!("{image}{tag}"));
        }
        output_of_input(&mut self.kubectl_command(&["apply", "-f", "-"]), &manifest).await?;
        for name in ["redis", "postgres", "guest"] {
            let name = format!("deployment/{name}");
            self.kubectl(&["rollout", "status", &name, "--timeout=120s"])
                .await?;
        }
        Ok(())
    }
}

async fn redis_files(debian: &Path) -> Result<Vec<(String, PathBuf)>> {
    let server = debian.join("usr/bin/redis-server");
    let mut files = vec![("redis-server".to_owned(), server)];
    add_libraries(&mut files, debian).await?;
    Ok(files)
}

/// The server, what makes a database for it, and a shell to call the one after the other; of its extensions those
/// that a new database has.
async fn postgres_files(debian: &Path) -> Result<Vec<(String, PathBuf)>> {
    let here = |path: String| (path.clone(), debian.join(path));
    let mut files: Vec<_> = ["bin/postgres", "bin/initdb", "bin/pg_isready"]
        .into_iter()
        .chain(["lib/plpgsql.so", "lib/dict_snowball.so"])
        .map(|name| here(format!("{POSTGRES}/{name}")))
        .collect();
    files.push(("bin/sh".to_owned(), Path::new("/bin/sh").canonicalize()?));
    add_libraries(&mut files, debian).await?;
    for dir in ["", "timezonesets", "tsearch_data", "extension"] {
        let dir = Path::new(POSTGRES_SHARE).join(dir);
        for entry in fs::read_dir(debian.join(&dir))? {
            let entry = entry?;
            let name = entry.file_name();
            let other = dir.ends_with("extension") && !name.as_bytes().starts_with(b"plpgsql");
            if entry.file_type()?.is_file() && !other {
                files.push(here(format!("{}/{}", dir.display(), name.display())));
            }
        }
    }
    // It refuses to be root, and asks who it is instead.
    let users = debian.join("users");
    fs::write(&users, "postgres:x:999:999::/tmp:/bin/sh\n")?;
    files.push(("etc/passwd".to_owned(), users));
    Ok(files)
}

/// Of these programs: what they load, and their loader.
pub(crate) async fn add_libraries(files: &mut Vec<(String, PathBuf)>, debian: &Path) -> Result<()> {
    let mut ldd = command("ldd")?;
    ldd.env("LD_LIBRARY_PATH", debian.join("usr").join(LIBRARIES))
        .args(files.iter().map(|(_, file)| file));
    let listed = output(&mut ldd).await?;
    let mut libraries = BTreeMap::new();
    for line in listed.lines().filter(|line| !line.ends_with(':')) {
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
        libraries.insert(format!("{dir}/{}", name.display()), file.canonicalize()?);
    }
    files.extend(libraries);
    Ok(())
}
