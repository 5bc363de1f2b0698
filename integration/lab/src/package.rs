//! Packages of the program: tarball, Debian package, RPM, SBOM, and files for Homebrew, krew, Arch and nix. Made by the tools of
//! those who read them (`tar`, `dpkg-deb`, `rpmbuild`) from one tree, by the files of `deploy/package`.
//!
//! Reproducible: every time in a package is `SOURCE_DATE_EPOCH`, or that of the last commit; owners are root, and orders sorted.

mod clean_root;
mod embedded;
mod licences;
mod tools;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use self::tree::Tree;
use crate::command::{BUILD_LIMIT, command, output, output_within};

pub use self::clean_root::try_packages;
pub use self::tools::ReleaseTools;

/// The most that the stripped program of a release may weigh: 5 % more than the first one did (39,792,784 bytes, x86-64,
/// Rust 1.95). Another compiler moves it by less, and the list of libraries that `cargo auditable` adds has a few KiB.
pub const BUDGET: u64 = 40 << 20;

/// Where things are, and what to make.
#[derive(Clone, Debug)]
pub struct PackageOptions {
    /// The repository.
    pub repository: PathBuf,
    /// What is packed.
    pub program: PackedProgram,
    /// The folder to make, which is emptied.
    pub out: PathBuf,
    /// Where the files of the release will be, for formulas that name it.
    pub url: Option<String>,
    /// Builds a second program that is linked with musl, and needs no C library of the system.
    pub musl: bool,
}

/// The program that is packed.
#[derive(Clone, Debug)]
pub enum PackedProgram {
    /// Built already; of what is not known, so that there is no list of its libraries.
    Given(PathBuf),
    /// The release build, made for it.
    Built(ReleaseTools),
}

/// What was made.
#[derive(Debug)]
pub struct Packages {
    /// Bytes of the stripped program.
    pub program: u64,
    /// Each file, with its bytes.
    pub files: Vec<(String, u64)>,
    /// What was left out, and why.
    pub left_out: Vec<String>,
}

/// The architecture of this machine, in the words of each system.
struct Architecture {
    rust: &'static str,
    debian: &'static str,
    go: &'static str,
}

fn architecture() -> Result<Architecture> {
    let [debian, go] = match std::env::consts::ARCH {
        "x86_64" => ["amd64", "amd64"],
        "aarch64" => ["arm64", "arm64"],
        other => bail!("no package is made for {other}: use x86-64 or ARM64"),
    };
    Ok(Architecture {
        rust: std::env::consts::ARCH,
        debian,
        go,
    })
}

/// Makes all packages.
///
/// # Errors
/// A tool is missing or fails, or the program is larger than its budget.
pub async fn package(options: &PackageOptions) -> Result<Packages> {
    let out = &options.out;
    if out.exists() {
        fs::remove_dir_all(out)?;
    }
    fs::create_dir_all(out)?;
    let epoch = epoch(&options.repository).await?;
    let name = architecture()?;
    let target = format!("{}-unknown-linux-gnu", name.rust);
    let built = match &options.program {
        PackedProgram::Given(program) => program.clone(),
        PackedProgram::Built(tools) => build(options, tools, &target, epoch).await?,
    };
    let version = version(&built).await?;
    let tree = Tree::make(
        &options.repository,
        &built,
        &out.join("root"),
        &target,
        epoch,
    )
    .await?;
    let program = fs::metadata(tree.program())?.len();
    // One that is given may be a debug build.
    ensure!(
        program <= BUDGET || matches!(options.program, PackedProgram::Given(_)),
        "the stripped program has {program} bytes, {BUDGET} at most: find what has grown, or raise BUDGET and say why"
    );
    let mut left_out = Vec::new();
    let tarball = format!("kubevpn-{version}-{}-linux.tar.gz", name.rust);
    let folder = format!("kubevpn-{version}-{}-linux", name.rust);
    tree.tar(out, &tarball, &folder).await?;
    if let (true, PackedProgram::Built(tools)) = (options.musl, &options.program) {
        musl(options, tools, &version, name.rust, epoch).await?;
    }
    let glibc = glibc(&tree.program()).await?;
    let words = Words(vec![
        ("VERSION", version.clone()),
        ("DATE", date(epoch).await?),
        ("DEB_ARCH", name.debian.to_owned()),
        ("GO_ARCH", name.go.to_owned()),
        ("GLIBC", glibc),
        ("KIBIBYTES", tree.kibibytes()?.to_string()),
        ("ROOT", tree.root().display().to_string()),
        ("TARBALL_SHA256", sha256(&out.join(&tarball))?),
        ("TARBALL", tarball),
        (
            "URL_TAG",
            options
                .url
                .as_ref()
                .map_or_else(String::new, |url| format!("URL: {url}")),
        ),
    ]);
    tree.deb(&words, out).await?;
    match command("rpmbuild") {
        Ok(_) => tree.rpm(&words, out, name.rust).await?,
        Err(error) => left_out.push(format!("the RPM: {error}")),
    }
    match &options.program {
        PackedProgram::Built(tools) => sbom(options, tools, epoch).await?,
        PackedProgram::Given(_) => {
            left_out.push("the SBOM: it is of a program that is built here".into())
        }
    }
    let source = format!("kubevpn-{version}.tar.gz");
    source_archive(&options.repository, &out.join(&source), &version).await?;
    match &options.url {
        Some(url) => formulas(options, &words, url, &sha256(&out.join(&source))?)?,
        None => {
            left_out.push("Homebrew, krew, AUR, nix: they name where a release is, by --url".into())
        }
    }
    fs::copy(
        options.repository.join("deploy/package/Containerfile"),
        out.join("Containerfile"),
    )?;
    let files = sums(out)?;
    Ok(Packages {
        program,
        files,
        left_out,
    })
}

/// The time that stands in the packages.
async fn epoch(repository: &Path) -> Result<u64> {
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH") {
        return epoch
            .parse()
            .context("SOURCE_DATE_EPOCH is no number of seconds");
    }
    let mut git = command("git")?;
    git.current_dir(repository)
        .args(["log", "-1", "--format=%ct"]);
    Ok(output(&mut git).await?.trim().parse()?)
}

/// A time as Debian's changelogs have it.
async fn date(epoch: u64) -> Result<String> {
    let mut date = command("date")?;
    date.args(["--utc", "--rfc-email", "--date"])
        .arg(format!("@{epoch}"))
        .env("LC_ALL", "C");
    Ok(output(&mut date).await?.trim().to_owned())
}

/// The program for every Linux, in a tarball of its own.
async fn musl(
    options: &PackageOptions,
    tools: &ReleaseTools,
    version: &str,
    rust: &str,
    epoch: u64,
) -> Result<()> {
    let target = format!("{rust}-unknown-linux-musl");
    let built = build(options, tools, &target, epoch).await?;
    let headers = output(command("objdump")?.arg("-p").arg(&built)).await?;
    ensure!(
        !headers.contains("NEEDED"),
        "the program for musl needs a library of the system"
    );
    let root = options.out.join("root-musl");
    let tree = Tree::make(&options.repository, &built, &root, &target, epoch).await?;
    let program = fs::metadata(tree.program())?.len();
    ensure!(
        program <= BUDGET,
        "the stripped program for musl has {program} bytes, {BUDGET} at most"
    );
    let folder = format!("kubevpn-{version}-{rust}-linux-musl");
    let tarball = format!("{folder}.tar.gz");
    tree.tar(&options.out, &tarball, &folder).await
}

/// The release build, with the list of its libraries in it, and no path of this machine.
///
/// # Errors
/// The build fails, or a library is missing from the list.
async fn build(
    options: &PackageOptions,
    tools: &ReleaseTools,
    triple: &str,
    epoch: u64,
) -> Result<PathBuf> {
    let target = options.out.join("target");
    let home = std::env::var("CARGO_HOME")
        .or_else(|_| std::env::var("HOME").map(|home| format!("{home}/.cargo")));
    let home = home.context("neither CARGO_HOME nor HOME is set")?;
    // The last one that fits counts: by default the target directory is in the repository.
    let places = [
        (options.repository.display().to_string(), "."),
        (home, "cargo"),
        (target.display().to_string(), "target"),
    ];
    let maps = |flag: &str, between: &str| {
        let flags = places
            .iter()
            .map(|(from, to)| format!("{flag}={from}={to}"));
        flags.collect::<Vec<_>>().join(between)
    };
    let mut cargo = tools.auditable();
    cargo
        .current_dir(&options.repository)
        .args(["build", "--release", "--locked", "-p", "kubevpn"])
        .args(["--target", triple, "--target-dir"])
        .arg(&target)
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            maps("--remap-path-prefix", "\x1f"),
        )
        .env("CFLAGS", maps("-ffile-prefix-map", " "))
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
    if triple.ends_with("musl") {
        // Debian's name for it on every architecture.
        cargo.env(format!("CC_{}", triple.replace('-', "_")), "musl-gcc");
    }
    output_within(BUILD_LIMIT, &mut cargo).await?;
    let built = target.join(triple).join("release/kubevpn");
    let linked = licences::libraries(&options.repository, triple).await?;
    let embedded = embedded::libraries(&built).await?;
    let missing: Vec<String> = linked
        .difference(&embedded)
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    ensure!(
        missing.is_empty(),
        "the program's list of its libraries lacks {}",
        missing.join(", ")
    );
    Ok(built)
}

async fn version(program: &Path) -> Result<String> {
    let said = output(Command::new(program).arg("--version")).await?;
    let version = said.split_whitespace().nth(1);
    Ok(version
        .context("kubevpn --version says no version")?
        .to_owned())
}

/// The newest version of glibc that one of its symbols asks for.
async fn glibc(program: &Path) -> Result<String> {
    let symbols = output(command("objdump")?.arg("-T").arg(program)).await?;
    let versions = symbols.split("GLIBC_").skip(1).filter_map(|rest| {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (major, minor) = rest[..end].split_once('.')?;
        let minor = minor.split('.').next()?;
        Some((major.parse::<u32>().ok()?, minor.parse::<u32>().ok()?))
    });
    let (major, minor) = versions
        .max()
        .context("the program names no glibc: it is static")?;
    Ok(format!("{major}.{minor}"))
}

async fn sbom(options: &PackageOptions, tools: &ReleaseTools, epoch: u64) -> Result<()> {
    let repository = &options.repository;
    let name = "kubevpn.cdx";
    let mut cyclonedx = tools.cyclonedx();
    cyclonedx
        .current_dir(repository)
        .args([
            "--format",
            "json",
            "--manifest-path",
            "bin/kubevpn/Cargo.toml",
        ])
        .args(["--override-filename", name])
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
    output(&mut cyclonedx).await?;
    // One is written beside the manifest of each member.
    let mut metadata = Command::new("cargo");
    metadata.current_dir(repository).args([
        "metadata",
        "--format-version=1",
        "--no-deps",
        "--offline",
    ]);
    let metadata: serde_json::Value = serde_json::from_str(&output(&mut metadata).await?)?;
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let manifest = Path::new(package["manifest_path"].as_str().unwrap_or_default());
        let written = manifest.with_file_name(format!("{name}.json"));
        if package["name"] == "kubevpn" {
            let sbom = settled(&fs::read_to_string(&written)?, repository)?;
            fs::write(options.out.join("kubevpn.cdx.json"), sbom)?;
        }
        if written.exists() {
            fs::remove_file(written)?;
        }
    }
    Ok(())
}

/// An SBOM without what differs between two makings (its serial number) and between machines (the repository's path).
fn settled(sbom: &str, repository: &Path) -> Result<String> {
    let sbom = sbom.replace(&*repository.to_string_lossy(), "");
    let mut sbom: serde_json::Value = serde_json::from_str(&sbom)?;
    if let Some(fields) = sbom.as_object_mut() {
        fields.remove("serialNumber");
    }
    Ok(serde_json::to_string_pretty(&sbom)? + "\n")
}

/// What is committed, as formulas build it.
async fn source_archive(repository: &Path, file: &Path, version: &str) -> Result<()> {
    let mut git = command("git")?;
    git.current_dir(repository)
        .args([
            "-c",
            "tar.tar.gz.command=gzip -9n",
            "archive",
            "--format=tar.gz",
        ])
        .arg(format!("--prefix=kubevpn-{version}/"))
        .arg("-o")
        .arg(file)
        .arg("HEAD");
    output(&mut git).await?;
    Ok(())
}

fn formulas(options: &PackageOptions, words: &Words, url: &str, source: &str) -> Result<()> {
    let home = url.split("/releases/").next().unwrap_or(url);
    let mut words = words.clone();
    words.0.extend([
        ("URL", url.to_owned()),
        ("HOME", home.to_owned()),
        ("SOURCE_SHA256", source.to_owned()),
    ]);
    for (template, name) in [
        ("kubevpn.rb", "kubevpn.rb"),
        ("krew.yaml", "kubevpn.yaml"),
        ("PKGBUILD", "PKGBUILD"),
        ("package.nix", "package.nix"),
    ] {
        let text = words.fill(&options.repository, template)?;
        fs::write(options.out.join(name), text)?;
    }
    Ok(())
}

/// What stands for each `@WORD@` of a template.
#[derive(Clone)]
struct Words(Vec<(&'static str, String)>);

impl Words {
    fn fill(&self, repository: &Path, template: &str) -> Result<String> {
        let path = repository.join("deploy/package").join(template);
        let mut text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        for (word, value) in &self.0 {
            text = text.replace(&format!("@{word}@"), value);
        }
        Ok(text)
    }
}

fn sha256(file: &Path) -> Result<String> {
    let digest = Sha256::digest(fs::read(file)?);
    Ok(digest.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Writes `SHA256SUMS` of the files of a folder, as `sha256sum --check` reads it.
fn sums(out: &Path) -> Result<Vec<(String, u64)>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(out)? {
        let entry = entry?;
        if entry.file_type()?.is_file() {
            let name = entry.file_name().to_string_lossy().into_owned();
            files.push((name, entry.metadata()?.len()));
        }
    }
    files.sort();
    let mut text = String::new();
    for (name, _) in &files {
        text.push_str(&format!("{}  {name}\n", sha256(&out.join(name))?));
    }
    fs::write(out.join("SHA256SUMS"), text)?;
    Ok(files)
}

/// The files that two makings of the packages do not share, byte for byte.
///
/// # Errors
/// A folder cannot be read.
pub fn differences(one: &Path, other: &Path) -> Result<Vec<String>> {
    let of = |folder: &Path| fs::read_to_string(folder.join("SHA256SUMS"));
    let (one, other) = (of(one)?, of(other)?);
    let differ = one
        .lines()
        .filter(|line| !other.lines().any(|it| it == *line));
    Ok(differ
        .map(|line| line.split("  ").nth(1).unwrap_or(line).to_owned())
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sbom_has_no_path_of_this_machine() {
        let made = r#"{"serialNumber":"urn:uuid:1","ref":"path+file:///home/me/kubevpn/bin/kubevpn#0.1.0"}"#;
        let sbom = settled(made, Path::new("/home/me/kubevpn")).unwrap();
        assert_eq!(
            sbom,
            "{\n  \"ref\": \"path+file:///bin/kubevpn#0.1.0\"\n}\n"
        );
    }

    /// A template with a word that nobody fills would be published so.
    #[test]
    fn every_word_of_the_templates_is_known() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/package");
        let known = [
            "VERSION",
            "DATE",
            "DEB_ARCH",
            "GO_ARCH",
            "GLIBC",
            "KIBIBYTES",
            "ROOT",
            "TARBALL_SHA256",
            "TARBALL",
            "URL_TAG",
            "URL",
            "HOME",
            "SOURCE_SHA256",
        ];
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.ends_with("README.md") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            for word in text.split('@').skip(1).step_by(2) {
                if !word.is_empty()
                    && word
                        .chars()
                        .all(|c| c.is_ascii_uppercase() || c == '_' || c.is_ascii_digit())
                {
                    assert!(known.contains(&word), "{}: {word}", path.display());
                    count += 1;
                }
            }
        }
        assert!(count > 15, "{count}");
    }
}
