//! Exit codes, signals, terminals, and processes that are left behind.

use super::*;

pub(super) async fn exit_codes_are_the_commands(cx: Context) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        let run = async |words: &[&str]| user.run(&cx, &[], words).await;
        run(&["true"]).await?.with(0, "")?;
        run(&["sh", "-c", "exit 7"]).await?.with(7, "")?;
        run(&["sh", "-c", "kill -KILL $$"]).await?.with(137, "")?;
        run(&["no-such-command"])
            .await?
            .with(127, "cannot run no-such-command")?;
        run(&["/"]).await?.with(126, "cannot run /")?;
    }
    Ok(())
}

pub(super) async fn signals_reach_the_command(cx: Context) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        for (signal, code) in [("TERM", 15), ("HUP", 1), ("USR1", 10), ("INT", 2)] {
            let script =
                format!("trap 'exit {code}' {signal}; echo ready; while :; do sleep 0.05; done");
            let running = user.start(&cx, &[], &script).await?;
            anyhow::ensure!(running.line == "ready", "{}", running.line);
            running.signal(signal, running.pid()?).await?;
            running.ended().await?.with(code, "")?;
        }
    }
    Ok(())
}

const CTRL_C: &str = "\u{3}";

const CTRL_Z: &str = "\u{1a}";

/// A terminal, and a shell with jobs on it.
struct Terminal {
    keys: std::fs::File,
    screen: tokio::sync::mpsc::Receiver<Vec<u8>>,
    text: String,
    _shell: Child,
}

impl Terminal {
    fn of(user: &CommandUser) -> anyhow::Result<Self> {
        use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        grantpt(&master)?;
        unlockpt(&master)?;
        let path = ptsname(&master, Vec::new())?.into_string()?;
        let slave = std::fs::File::options().read(true).write(true).open(path)?;
        let mut shell = Command::new("setsid");
        shell.args(["--ctty", "--wait"]);
        shell
            .args(&user.before)
            .args(["bash", "--noprofile", "--norc", "--noediting", "-i"])
            .env("PS1", "outer: ")
            .env("HOME", user.files.path())
            .env("PATH", PATH)
            .env_remove("KUBECONFIG")
            .current_dir(user.files.path())
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave)
            .kill_on_drop(true);
        let child = shell.spawn()?;
        // The terminal's other end is the shell's alone, so that its end is seen.
        drop(shell);
        let keys = std::fs::File::from(master);
        let mut screen = keys.try_clone()?;
        let (say, said) = tokio::sync::mpsc::channel(64);
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = std::io::Read::read(&mut screen, &mut bytes) {
                if say.blocking_send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            keys,
            screen: said,
            text: String::new(),
            _shell: child,
        })
    }

    fn types(&mut self, text: &str) -> anyhow::Result<()> {
        Ok(std::io::Write::write_all(&mut self.keys, text.as_bytes())?)
    }

    /// Waits until this is said, and forgets what was said until then.
    async fn shows(&mut self, wanted: &str) -> anyhow::Result<()> {
        let reading = async {
            loop {
                if let Some(at) = self.text.find(wanted) {
                    self.text.drain(..at + wanted.len());
                    return true;
                }
                let Some(bytes) = self.screen.recv().await else {
                    return false;
                };
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
        };
        let shown = tokio::time::timeout(PATIENCE, reading).await;
        anyhow::ensure!(shown == Ok(true), "no {wanted:?} in {:?}", self.text);
        Ok(())
    }

    /// What is said until this is, both forgotten.
    async fn reads_to(&mut self, end: &str) -> anyhow::Result<String> {
        let reading = async {
            while !self.text.contains(end) {
                let bytes = self.screen.recv().await.context("the terminal is closed")?;
                self.text.push_str(&String::from_utf8_lossy(&bytes));
            }
            Ok::<_, anyhow::Error>(())
        };
        tokio::time::timeout(PATIENCE, reading).await??;
        let (said, rest) = self.text.split_once(end).context("it was said")?;
        let (said, rest) = (said.to_owned(), rest.to_owned());
        self.text = rest;
        Ok(said)
    }
}

/// Ctrl-Z stops the command and us, `fg` continues both, Ctrl-C ends it; a shell inside has jobs of its own. What is typed
/// is shown too, so that no answer is spelt there as it will be.
pub(super) async fn jobs_of_a_terminal(cx: Context) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        let mut terminal = Terminal::of(&user)?;
        terminal.shows("outer: ").await?;
        let run = user.kubevpn.display();
        let run = format!("{run} run --isolated --kubeconfig kubeconfig --");
        let script = "echo in-$((1+1)); read line; echo got-$line; exec sleep 1000";
        terminal.types(&format!("{run} bash -c '{script}'\n"))?;
        terminal.shows("in-2").await?;
        terminal.types(CTRL_Z)?;
        terminal.shows("Stopped").await?;
        terminal.shows("outer: ").await?;
        terminal.types("fg\n")?;
        // The shell names the job it continues: what is typed before is the shell's to read.
        terminal.shows("exec sleep 1000'").await?;
        terminal.types("hello\n")?;
        terminal.shows("got-hello").await?;
        terminal.types(CTRL_C)?;
        terminal.shows("outer: ").await?;
        terminal.types("echo code-$?\n")?;
        terminal.shows("code-130").await?;
        terminal.shows("outer: ").await?;

        let inner = "env PS1='inner: ' bash --noprofile --norc --noediting -i";
        terminal.types(&format!("{run} {inner}\n"))?;
        terminal.shows("\ninner: ").await?;
        terminal.types("echo is-$KUBEVPN_ISOLATED\n")?;
        terminal.shows("is-1").await?;
        terminal.shows("inner: ").await?;
        terminal.types("bash -c 'echo up-$((4+1)); read line; echo got-$line'\n")?;
        terminal.shows("up-5").await?;
        terminal.types(CTRL_Z)?;
        terminal.shows("Stopped").await?;
        terminal.shows("inner: ").await?;
        terminal.types("fg\n")?;
        terminal.shows("echo got-$line'").await?;
        terminal.types("again\n")?;
        terminal.shows("got-again").await?;
        terminal.shows("inner: ").await?;
        terminal.types("exit 4\n")?;
        terminal.shows("outer: ").await?;
        terminal.types("echo code-$?\n")?;
        terminal.shows("code-4").await?;
        no_process_of(&user.kubevpn).await?;
    }
    Ok(())
}

/// A shell takes its terminal back when we have stopped. Were that before the command, the command could still read the
/// line that is typed for the shell.
pub(super) async fn it_stops_with_the_command(cx: Context) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        for isolated in ["--isolated", "--"] {
            let mut terminal = Terminal::of(&user)?;
            terminal.shows("outer: ").await?;
            let kubevpn = user.kubevpn.display();
            let run = format!("{kubevpn} run --kubeconfig kubeconfig {isolated}");
            let script = "trap \"echo us\"r USR1; trap \"echo continue\"d CONT; \
                          echo is-$PPID-$$-; while :; do read -t 0.05; done";
            terminal.types(&format!("{run} bash -c '{script}'\n"))?;
            terminal.shows("\nis-").await?;
            let us: u32 = terminal.reads_to("-").await?.parse()?;
            let command: u32 = terminal.reads_to("-").await?.parse()?;

            // The command has not stopped, and neither do we: a signal is passed on.
            kill("TSTP", us).await?;
            tstp_is_taken(us).await?;
            kill("USR1", us).await?;
            terminal.shows("usr").await?;

            // It has, and by itself, as programs do that put the screen in order first.
            for _ in 0..2 {
                kill("STOP", command).await?;
                terminal.shows("Stopped").await?;
                terminal.shows("outer: ").await?;
                terminal.types("fg\n")?;
                terminal.shows("continued").await?;
            }
            terminal.types(CTRL_C)?;
            terminal.shows("outer: ").await?;
            terminal.types("echo code-$?\n")?;
            terminal.shows("code-130").await?;

            // A command that ignores Ctrl-Z ends as any other: we exit with it, and do not stop.
            terminal.shows("outer: ").await?;
            let script = "trap \"\" TSTP; echo ign-$PPID-; read x";
            terminal.types(&format!("{run} sh -c '{script}'\n"))?;
            terminal.shows("\nign-").await?;
            let us: u32 = terminal.reads_to("-").await?.parse()?;
            terminal.types(CTRL_Z)?;
            terminal.shows("^Z").await?;
            tstp_is_taken(us).await?;
            terminal.types("\n")?;
            let said = terminal.reads_to("outer: ").await?;
            anyhow::ensure!(!said.contains("Stopped"), "{said:?}");
            terminal.types("echo code-$?\n")?;
            terminal.shows("code-0").await?;
        }
        no_process_of(&user.kubevpn).await?;
    }
    Ok(())
}

/// Waits until a SIGTSTP is no longer pending for the process.
async fn tstp_is_taken(process: u32) -> anyhow::Result<()> {
    // The bit of SIGTSTP in the masks of `/proc/PID/status`.
    const TSTP: u64 = 1 << 19;
    until("SIGTSTP to be taken", async || {
        let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
        let pending = status.lines().filter_map(|line| {
            let mask = line
                .strip_prefix("SigPnd:")
                .or_else(|| line.strip_prefix("ShdPnd:"))?;
            u64::from_str_radix(mask.trim(), 16).ok()
        });
        let is_pending = pending.fold(0_u64, |all, mask| all | mask) & TSTP != 0;
        Ok((!is_pending).then_some(()))
    })
    .await
}

/// The processes in a namespace that was printed as `net:[4026532180]`.
fn members(network: &str) -> anyhow::Result<Vec<String>> {
    anyhow::ensure!(network.starts_with("net:["), "no network: {network:?}");
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc")? {
        let path = entry?.path();
        let is = std::fs::read_link(path.join("ns/net"));
        if is.is_ok_and(|is| is == Path::new(network)) {
            found.push(path.display().to_string());
        }
    }
    Ok(found)
}

/// Waits until nobody is in it any more.
async fn emptied(network: &str) -> anyhow::Result<()> {
    until("the network to be empty", async || {
        Ok(members(network)?.is_empty().then_some(()))
    })
    .await
    .with_context(|| format!("still in {network}: {:?}", members(network)))
}

/// Waits until no process of the program is left, whatever it is there for.
async fn no_process_of(kubevpn: &Path) -> anyhow::Result<()> {
    until("the program's processes to end", async || {
        for entry in std::fs::read_dir("/proc")? {
            let exe = std::fs::read_link(entry?.path().join("exe"));
            if exe.is_ok_and(|exe| exe == kubevpn) {
                return Ok(None);
            }
        }
        Ok(Some(()))
    })
    .await
}

/// However it ends. A namespace without a process, and without a descriptor, is no more: mounts and sockets go with it.
pub(super) async fn nothing_is_left_behind(cx: Context) -> anyhow::Result<()> {
    const WAIT: &str = "readlink /proc/self/ns/net; echo $$; exec sleep 1000";
    // One that no terminal and no process group ends.
    let left = format!("(setsid sleep 1000 </dev/null >/dev/null 2>&1 &); {WAIT}");
    for user in CommandUser::all(&cx)? {
        let own = std::fs::read_link("/proc/self/ns/net")?;
        for (script, signal, of_command) in [
            (WAIT, "TERM", false),
            (WAIT, "INT", false),
            (WAIT, "KILL", false),
            (WAIT, "KILL", true),
            (left.as_str(), "KILL", false),
        ] {
            // With the process that serves a published port.
            let mut running = user.start(&cx, &["--publish", "0:8000"], script).await?;
            let network = running.line.clone();
            anyhow::ensure!(Path::new(&network) != own, "it is not isolated: {network}");
            let mut pid = String::new();
            running.out.read_line(&mut pid).await?;
            let inside = members(&network)?.len();
            let wanted = if script == WAIT { 2 } else { 3 };
            anyhow::ensure!(inside == wanted, "{:?}", members(&network)?);
            let to = match of_command {
                true => pid.trim_end().parse()?,
                false => running.pid()?,
            };
            running.signal(signal, to).await?;
            let ended = running.ended().await?;
            let wanted = match (signal, of_command) {
                ("TERM", _) => Some(143),
                ("INT", _) => Some(130),
                (_, true) => Some(137),
                // kubevpn was killed.
                (_, false) => None,
            };
            anyhow::ensure!(ended.code == wanted, "{signal}: {ended:?}");
            emptied(&network).await?;
            no_process_of(&user.kubevpn).await?;
        }
        let network = user.script(&cx, "readlink /proc/self/ns/net").await?;
        emptied(network.trim_end()).await?;
        // The files are the machine's again, as they have been outside all the time.
        let seen = user.script(&cx, "cat /etc/resolv.conf").await?;
        let is_ours = |text: &str| text.contains("nameserver 198.18.0.1\nsearch default.svc.");
        anyhow::ensure!(is_ours(&seen), "{seen}");
        anyhow::ensure!(!is_ours(&std::fs::read_to_string("/etc/resolv.conf")?));
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        anyhow::ensure!(!mounts.contains("kubevpn "), "{mounts}");
    }
    Ok(())
}

pub(super) async fn what_a_command_leaves_behind_keeps_its_network(
    cx: Context,
) -> anyhow::Result<()> {
    for user in CommandUser::all(&cx)? {
        let fifo = user.files.path().join("go");
        let fifo = fifo.to_str().context("UTF-8")?;
        let script = format!(
            "rm -f {fifo}; mkfifo {fifo}; readlink /proc/self/ns/net; \
             (read line <{fifo}; exec {CURL} http://productpage:9080/ >got 2>&1) >/dev/null 2>&1 & exit 3"
        );
        let mut running = user.start(&cx, &[], &script).await?;
        let mut log = BufReader::new(running.child.stderr.take().context("stderr is piped")?);
        let mut line = String::new();
        let waiting = async {
            while !line.starts_with("waiting for a process that bash left behind") {
                line.clear();
                anyhow::ensure!(log.read_line(&mut line).await? > 0, "it does not wait");
            }
            Ok(())
        };
        tokio::time::timeout(PATIENCE, waiting).await??;
        std::fs::write(fifo, "go\n")?;
        running.ended().await?.with(3, "")?;
        let got = std::fs::read_to_string(user.files.path().join("got"))?;
        anyhow::ensure!(got.contains(r#""service":"productpage""#), "{got}");

        let running = user.start(&cx, &["--no-wait"], &script).await?;
        let network = running.line.clone();
        running.ended().await?.with(3, "")?;
        anyhow::ensure!(members(&network)?.len() == 1, "{:?}", members(&network)?);
        std::fs::write(fifo, "go\n")?;
        emptied(&network).await?;
        let got = std::fs::read_to_string(user.files.path().join("got"))?;
        anyhow::ensure!(!got.contains("service"), "{got}");
    }
    Ok(())
}
