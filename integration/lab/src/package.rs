//! Packages of the program: tarball, Debian package, RPM, SBOM, and files for Homebrew, krew, Arch and nix. Each is built by
//! its system's own tool (`tar`, `dpkg-deb`, `rpmbuild`) from one tree, with the files in `deploy/package`.
//!
//! Reproducible: every time in a package is `SOURCE_DATE_EPOCH`, or that of the last commit; owners are root, and lists are
//! sorted.

mod clean_root;
mod differences;
mod embedded;
mod licences;
mod tools;
mod tree;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use sha2::{Digest as _, Sha256};
use tokio::process::Command;

use self::differences::names_no_folder;
use self::licences::Libraries;
use self::tree::Tree;
use crate::command::{BUILD_LIMIT, command, output, output_within};

pub use self::clean_root::try_packages;
pub use self::differences::{FileDifference, differences};
pub use self::tools::ReleaseTools;

/// Upper bound on the stripped program of a release (41,434,112 bytes when this was last measured: x86-64, Rust 1.95). A new
/// compiler changes the size by less than a twentieth, and the list of libraries that `cargo auditable` adds has a few KiB.
pub const BUDGET: u64 = 40 << 20;

/// Sources, program and output of a packaging.
#[derive(Clone, Debug)]
pub struct PackageOptions {
    /// Folder of the repository.
    pub repository: PathBuf,
    /// The program to pack.
    pub program: PackedProgram,
    /// The output folder, which is emptied.
    pub out: PathBuf,
    /// URL of the release's files, for formulas that name it.
    pub url: Option<String>,
    /// Also builds a program linked with musl, which needs no C library of the system.
    pub musl: bool,
}

/// Source of the packed program.
#[derive(Clone, Debug)]
pub enum PackedProgram {
    /// An existing program. How it was built is not known, so there is no list of its libraries.
    Given(PathBuf),
    /// A program built for the packages.
    Built(PackageBuild),
}

/// Settings of the build.
#[derive(Clone, Debug)]
pub struct PackageBuild {
    /// The cargo tools of the build.
    pub tools: ReleaseTools,
    /// Cargo profile: `dist`, or a faster one to try the packaging.
    pub profile: String,
    /// `CARGO_HOME` of the build, if it is not the usual one.
    pub cargo_home: Option<PathBuf>,
}

/// Result of a packaging.
#[derive(Debug)]
pub struct Packages {
    /// Size of the stripped program in bytes.
    pub program: u64,
    /// SHA-256 of the stripped program, to compare two builds.
    pub sha256: String,
    /// Name and size in bytes of each file.
    pub files: Vec<(String, u64)>,
    /// What was left out, with the reason.
    pub left_out: Vec<String>,
}

/// Names of this machine's architecture in each system.
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

/// Builds all packages.
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
        PackedProgram::Built(plan) => build(options, plan, &target, epoch).await?,
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
    within_budget(&options.program, program)?;
    let mut left_out = Vec::new();
    let tarball = format!("kubevpn-{version}-{}-linux.tar.gz", name.rust);
    let folder = format!("kubevpn-{version}-{}-linux", name.rust);
    tree.tar(out, &tarball, &folder).await?;
    if let (true, PackedProgram::Built(plan)) = (options.musl, &options.program) {
        musl(options, plan, &version, name.rust, epoch).await?;
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
        PackedProgram::Built(plan) => sbom(options, &plan.tools, &target, epoch).await?,
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
        sha256: sha256(&tree.program())?,
        files,
        left_out,
    })
}

/// Checks the budget of a release build only: a given program may be a debug build, and other profiles are for trying.
fn within_budget(program: &PackedProgram, bytes: u64) -> Result<()> {
    let is_packed = matches!(program, PackedProgram::Built(plan) if plan.profile == "dist");
    ensure!(
        bytes <= BUDGET || !is_packed,
        "the stripped program has {bytes} bytes, {BUDGET} at most: find what has grown, or raise BUDGET and say why"
    );
    Ok(())
}

/// The time written into the packages, in seconds since 1970.
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

/// A time in the format of Debian's changelogs.
async fn date(epoch: u64) -> Result<String> {
    let mut date = command("date")?;
    date.args(["--utc", "--rfc-email", "--date"])
        .arg(format!("@{epoch}"))
        .env("LC_ALL", "C");
    Ok(output(&mut date).await?.trim().to_owned())
}

/// Builds the program for every Linux, in a tarball of its own.
async fn musl(
    options: &PackageOptions,
    plan: &PackageBuild,
    version: &str,
    rust: &str,
    epoch: u64,
) -> Result<()> {
    let target = format!("{rust}-unknown-linux-musl");
    let built = build(options, plan, &target, epoch).await?;
    let headers = output(command("objdump")?.arg("-p").arg(&built)).await?;
    ensure!(
        !headers.contains("NEEDED"),
        "the program for musl needs a library of the system"
    );
    let root = options.out.join("root-musl");
    let tree = Tree::make(&options.repository, &built, &root, &target, epoch).await?;
    let program = fs::metadata(tree.program())?.len();
    within_budget(&options.program, program)?;
    let folder = format!("kubevpn-{version}-{rust}-linux-musl");
    let tarball = format!("{folder}.tar.gz");
    tree.tar(&options.out, &tarball, &folder).await
}

/// Builds the program, with the list of its libraries in it and no path of this machine.
///
/// # Errors
/// The build fails, a library is missing from the list, or a path is in the program.
async fn build(
    options: &PackageOptions,
    plan: &PackageBuild,
    triple: &str,
    epoch: u64,
) -> Result<PathBuf> {
    let target = options.out.join("target");
    let home = match &plan.cargo_home {
        Some(home) => home.clone(),
        None => cargo_home()?,
    };
    let compiler = output(Command::new("rustc").args(["--print", "sysroot"])).await?;
    // The last matching prefix wins, and the target directory is in the repository by default: it comes after the repository.
    let places = [
        (options.repository.display().to_string(), "."),
        (compiler.trim().to_owned(), "rust"),
        (home.display().to_string(), "cargo"),
        (target.display().to_string(), "target"),
    ];
    let maps = |flag: &str, between: &str| {
        let flags = places
            .iter()
            .map(|(from, to)| format!("{flag}={from}={to}"));
        flags.collect::<Vec<_>>().join(between)
    };
    let mut head = command("git")?;
    head.current_dir(&options.repository)
        .args(["rev-parse", "HEAD"]);
    let commit = output(&mut head).await?;
    let mut cargo = plan.tools.auditable();
    cargo
        .current_dir(&options.repository)
        .args(["build", "--locked", "-p", "kubevpn", "--profile"])
        .arg(&plan.profile)
        .args(["--target", triple, "--target-dir"])
        .arg(&target)
        .env("CARGO_HOME", &home)
        // Shown by `kubevpn version`.
        .env("KUBEVPN_COMMIT", commit.trim())
        // The result of an incremental build depends on the builds before it.
        .env("CARGO_INCREMENTAL", "0")
        .env(
            "CARGO_ENCODED_RUSTFLAGS",
            maps("--remap-path-prefix", "\x1f"),
        )
        .env("CFLAGS", maps("-ffile-prefix-map", " "))
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
    if triple.ends_with("musl") {
        // Debian uses this name on every architecture.
        cargo.env(format!("CC_{}", triple.replace('-', "_")), "musl-gcc");
    }
    if triple.starts_with("aarch64") {
        // jemalloc takes the page size from the machine that builds it, and aborts at once on a machine with larger pages.
        cargo.env("JEMALLOC_SYS_WITH_LG_PAGE", "16");
    }
    output_within(BUILD_LIMIT, &mut cargo).await?;
    let folder = match &*plan.profile {
        "dev" => "debug",
        profile => profile,
    };
    let built = target.join(triple).join(folder).join("kubevpn");
    let stripped = built.with_file_name("kubevpn-stripped");
    output(command("strip")?.arg("-o").arg(&stripped).arg(&built)).await?;
    let folders = places.map(|(folder, _)| folder);
    names_no_folder(&stripped, &folders)?;
    let linked = licences::libraries(&options.repository, triple).await?;
    let embedded = embedded::libraries(&built).await?;
    ensure_all("the program's list of its libraries", &linked, &embedded)?;
    Ok(built)
}

/// Cargo's home, with the crates that it has fetched.
///
/// # Errors
/// Neither `CARGO_HOME` nor `HOME` is set.
fn cargo_home() -> Result<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")
}

/// Checks that a list of the program's libraries contains all that are linked.
fn ensure_all(what: &str, linked: &Libraries, listed: &Libraries) -> Result<()> {
    let missing: Vec<String> = linked
        .difference(listed)
        .map(|(name, version)| format!("{name} {version}"))
        .collect();
    ensure!(missing.is_empty(), "{what} lacks {}", missing.join(", "));
    Ok(())
}

/// Options for a second packaging that shares no folder with the first: its sources are a clone, and `CARGO_HOME` has another
/// name.
///
/// # Errors
/// There are uncommitted changes, which a clone would not have.
pub async fn clone_elsewhere(options: &PackageOptions, folder: &Path) -> Result<PackageOptions> {
    let mut status = command("git")?;
    status
        .current_dir(&options.repository)
        .args(["status", "--porcelain"]);
    let changed = output(&mut status).await?;
    ensure!(
        changed.is_empty(),
        "the second making is of a clone: commit first what is not committed\n{changed}"
    );
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    fs::create_dir_all(folder)?;
    let repository = folder.join("a-clone-in-a-folder-of-another-length");
    let mut clone = command("git")?;
    clone
        .args(["clone", "--quiet", "--no-hardlinks"])
        .arg(&options.repository)
        .arg(&repository);
    output(&mut clone).await?;
    let mut program = options.program.clone();
    if let PackedProgram::Built(plan) = &mut program {
        let home = folder.join("cargo");
        std::os::unix::fs::symlink(cargo_home()?, &home)?;
        plan.cargo_home = Some(home);
    }
    Ok(PackageOptions {
        repository,
        program,
        out: folder.join("package"),
        ..options.clone()
    })
}

async fn version(program: &Path) -> Result<String> {
    let said = output(Command::new(program).arg("--version")).await?;
    let version = said.split_whitespace().nth(1);
    Ok(version
        .context("kubevpn --version says no version")?
        .to_owned())
}

/// The newest glibc version that a symbol of the program needs.
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

async fn sbom(
    options: &PackageOptions,
    tools: &ReleaseTools,
    target: &str,
    epoch: u64,
) -> Result<()> {
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
        .args(["--override-filename", name, "--target", target])
        .args(["--spec-version", "1.5"])
        .env("SOURCE_DATE_EPOCH", epoch.to_string());
    output(&mut cyclonedx).await?;
    // `cargo cyclonedx` writes an SBOM beside the manifest of each member.
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
            let linked = licences::libraries(repository, target).await?;
            ensure_all("the SBOM", &linked, &licensed(&sbom)?)?;
            fs::write(options.out.join("kubevpn.cdx.json"), sbom)?;
        }
        if written.exists() {
            fs::remove_file(written)?;
        }
    }
    Ok(())
}

/// An SBOM without the parts that differ between two builds (its serial number) or between machines (the repository's path).
fn settled(sbom: &str, repository: &Path) -> Result<String> {
    let sbom = sbom.replace(&*repository.to_string_lossy(), "");
    let mut sbom: serde_json::Value = serde_json::from_str(&sbom)?;
    if let Some(fields) = sbom.as_object_mut() {
        fields.remove("serialNumber");
    }
    Ok(serde_json::to_string_pretty(&sbom)? + "\n")
}

/// The libraries in an SBOM that have a licence there.
fn licensed(sbom: &str) -> Result<Libraries> {
    let sbom: serde_json::Value = serde_json::from_str(sbom)?;
    let components = sbom["components"].as_array().into_iter().flatten();
    let with_licence = components.filter(|it| {
        it["licenses"]
            .as_array()
            .is_some_and(|licences| !licences.is_empty())
    });
    let named = with_licence.filter_map(|it| {
        let name = it["name"].as_str()?;
        Some((name.to_owned(), it["version"].as_str()?.to_owned()))
    });
    Ok(named.collect())
}

/// Archives the committed sources, from which formulas build.
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

/// Values for each `@WORD@` of a template.
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

/// Writes `SHA256SUMS` for the files of a folder, in the format of `sha256sum --check`.
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

    #[test]
    fn an_sbom_without_a_licence_is_refused() {
        let linked = Libraries::from([
            ("h2".to_owned(), "0.4.0".to_owned()),
            ("tokio".to_owned(), "1.0.0".to_owned()),
        ]);
        let sbom = r#"{"components":[
            {"name":"h2","version":"0.4.0","licenses":[{"expression":"MIT"}]},
            {"name":"tokio","version":"1.0.0"}]}"#;
        let listed = licensed(sbom).unwrap();
        let error = ensure_all("the SBOM", &linked, &listed).unwrap_err();
        assert_eq!(error.to_string(), "the SBOM lacks tokio 1.0.0");
        let sbom = sbom.replace("1.0.0\"", "1.0.0\",\"licenses\":[{\"expression\":\"MIT\"}]");
        ensure_all("the SBOM", &linked, &licensed(&sbom).unwrap()).unwrap();
    }

    /// A template with an unknown word would be published with the word in it.
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
