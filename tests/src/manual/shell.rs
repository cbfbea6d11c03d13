//! The commands of one page, in a folder of their own.

use super::{Block, Note, Page};
use crate::{checkout, daemon::Daemon, eventually, nats::free_port, nerve, nerve_binary, seconds};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use std::{
    collections::BTreeMap,
    fs::{self, File},
    os::unix::{fs::symlink, process::CommandExt},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The comment of a command that is a server.
const SERVER_COMMENT: &str = "in its own terminal";
/// Ports of the pages, for each of which a free one is used.
const PORTS: [&str; 4] = ["8080", "8081", "4222", "9000"];
/// Commands that only read. A block of them is repeated until its output is the one on the page, as one that must fail is.
const READ_COMMANDS: [&str; 18] = [
    "curl -N",
    "curl http",
    "nerve access list",
    "nerve ask",
    "nerve collections list",
    "nerve collections show",
    "nerve describe",
    "nerve dlq list",
    "nerve dlq show",
    "nerve invoke",
    "nerve list",
    "nerve logs",
    "nerve models list",
    "nerve secrets list",
    "nerve sink attempts",
    "nerve source list",
    "nerve tail",
    "nerve trace",
];
/// How long such a block is repeated.
const REPEAT_TIMEOUT: Duration = seconds(30);
/// Time limit of a block.
const BLOCK_TIMEOUT: Duration = seconds(120);

/// A folder with the state that one block leaves for the next.
pub struct Shell {
    folder: TempDir,
    /// What the page's commands do not see: the state, curl's settings, a `nerve` on the path.
    aside: TempDir,
    ports: BTreeMap<&'static str, String>,
    servers: Vec<Daemon>,
}

/// What a script did.
struct Ended {
    success: bool,
    output: String,
}

impl Shell {
    /// A folder with links to those of the checkout.
    pub fn new() -> Self {
        let temporary = || tempfile::tempdir().expect("a temporary folder");
        let (folder, aside) = (temporary(), temporary());
        for name in ["README.md", "functions", "platform", "deploy", "tests", ".tools"] {
            symlink(checkout().join(name), folder.path().join(name)).expect("a link into the checkout");
        }
        fs::create_dir(aside.path().join("bin")).expect("a folder for the binary");
        symlink(nerve_binary(), aside.path().join("bin/nerve")).expect("a link to the binary");
        fs::write(aside.path().join(".curlrc"), "silent\nfail-with-body\n").expect("curl's settings");
        fs::write(aside.path().join("state"), "").expect("the state");
        let ports = PORTS.into_iter().map(|port| (port, free_port().to_string())).collect();
        Self { folder, aside, ports, servers: Vec::new() }
    }

    /// Runs a page, and fails the test at the first block that does something else than the page says.
    pub async fn run(&mut self, page: &Page) {
        let blocks = page.blocks();
        for (at, block) in blocks.iter().enumerate() {
            match (&block.note, block.language.as_str()) {
                (Some(Note::File(path)), _) => self.write(path, &block.text),
                (Some(Note::NotRun(_)), _) => {}
                (_, "sh") => {
                    let expected = blocks.get(at + 1).filter(|next| next.language == "text");
                    self.block(page, block, expected).await;
                }
                _ => {}
            }
        }
    }

    /// Starts a server that the page takes for granted.
    pub async fn serve(&mut self, command: &str) {
        let mut bash = self.bash(&format!("exec env {}", self.with_ports(command)));
        let mut server = Daemon::spawn(command, &mut bash);
        let what = format!("`{command}` is ready");
        eventually(&what, seconds(60), || {
            let (said, status) = (server.stdout() + &server.stderr(), server.exited());
            assert!(status.is_none(), "`{command}` ended: {said}");
            let ready = if command.contains("nerve ") { " is ready\n" } else { "" };
            let is_ready = said.contains("listening") || said.to_lowercase().contains("ready");
            async move { (is_ready && said.contains(ready)).then_some(()) }
        })
        .await;
        self.servers.push(server);
    }

    async fn block(&mut self, page: &Page, block: &Block, expected: Option<&Block>) {
        let mut script = String::new();
        for line in block.text.lines() {
            if line.contains(SERVER_COMMENT) {
                self.commands(page, block, &std::mem::take(&mut script), None).await;
                let command = line.split(" #").next().unwrap_or_default();
                self.serve(command.trim_end()).await;
            } else {
                script.push_str(line);
                script.push('\n');
            }
        }
        self.commands(page, block, &script, expected).await;
    }

    async fn commands(&self, page: &Page, block: &Block, script: &str, expected: Option<&Block>) {
        if script.trim().is_empty() {
            return;
        }
        let script = self.with_ports(script);
        let expected = expected.map(|expected| self.with_ports(&expected.text));
        let fails = matches!(block.note, Some(Note::Fails(_)));
        let started = Instant::now();
        loop {
            let ended = self.execute(&script).await;
            let is_right = expected.as_deref().is_none_or(|expected| is_output(expected, &ended.output));
            if is_right && ended.success != fails {
                return;
            }
            assert!(
                (fails || only_reads(&script)) && started.elapsed() < REPEAT_TIMEOUT,
                "{}:{}: {}{}\n---- commands\n{script}---- output\n{}\n---- on the page\n{}",
                page.path,
                block.line,
                if ended.success { "it succeeded" } else { "it failed" },
                if is_right { "" } else { ", with another output" },
                ended.output,
                expected.as_deref().unwrap_or("(no output)"),
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    async fn execute(&self, script: &str) -> Ended {
        let state = self.aside.path().join("state");
        let output = self.aside.path().join("output");
        let file = File::create(&output).expect("a file for output");
        let save = format!("{{ export -p; printf 'cd %q\\n' \"$PWD\"; }} > {state:?}");
        let mut bash = self.bash(&format!("set -ea\n{script}\nset +ea\n{save}"));
        bash.stdin(Stdio::null()).stdout(file.try_clone().expect("the file again")).stderr(file).process_group(0);
        let mut child = bash.spawn().expect("bash starts");
        let group = Pid::from_raw(child.id().try_into().expect("a pid"));
        let end = tokio::task::spawn_blocking(move || child.wait());
        let end = tokio::time::timeout(BLOCK_TIMEOUT, end).await;
        let output = String::from_utf8_lossy(&fs::read(output).unwrap_or_default()).into_owned();
        match end {
            Ok(status) => {
                let success = status.expect("the thread ends").expect("bash can be waited for").success();
                Ended { success, output }
            }
            Err(_) => {
                let _ = killpg(group, Signal::SIGKILL);
                panic!("not within {BLOCK_TIMEOUT:?}:\n{script}\n---- output\n{output}");
            }
        }
    }

    /// Bash, where the last block left it.
    fn bash(&self, script: &str) -> Command {
        let aside = self.aside.path();
        let path = std::env::var("PATH").unwrap_or_default();
        let path = format!("{}:{}:{path}", aside.join("bin").display(), checkout().join(".tools/bin").display());
        let mut bash = nerve::isolated(Command::new("bash"));
        bash.arg("-c").arg(format!(". {:?}\n{script}", aside.join("state"))).current_dir(self.folder.path());
        bash.env("PATH", path).env("CURL_HOME", aside).env("NERVE_GATEWAY_LISTEN", self.with_ports("127.0.0.1:8080"));
        bash
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap_or(Path::new("."))).expect("a folder for the file");
        fs::write(path, self.with_ports(text)).expect("a file of the page");
    }

    fn with_ports(&self, text: &str) -> String {
        let is_word = |c: char| c.is_alphanumeric() || c == '.' || c == '_';
        let words = text.split_inclusive(|c| !is_word(c)).map(|word| {
            let number = word.trim_end_matches(|c| !is_word(c));
            self.ports.get(number).map_or_else(|| word.to_owned(), |port| word.replace(number, port))
        });
        words.collect()
    }
}

impl Default for Shell {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether every command of a script only reads.
fn only_reads(script: &str) -> bool {
    let script = script.replace("\\\n", " ");
    let mut commands = script.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    commands.all(|line| {
        let sends = line.starts_with("curl") && [" -d", " -X", " --data"].iter().any(|option| line.contains(option));
        let sends = sends && !line.contains("/v1/embeddings") && !line.contains("/v1/answers");
        READ_COMMANDS.iter().any(|command| line.starts_with(command)) && !sends
    })
}

/// Whether an output is the expected one, in which `…` stands for anything.
fn is_output(expected: &str, output: &str) -> bool {
    let words = |text: &str| {
        let lines = text.trim().lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        lines.collect::<Vec<_>>().join("\n")
    };
    let (expected, output) = (words(expected), words(output));
    let pieces: Vec<&str> = expected.split('…').map(|piece| piece.trim_matches(' ')).collect();
    let [first, middle @ .., last] = pieces.as_slice() else { return expected.trim() == output };
    let Some(mut rest) = output.strip_prefix(first) else { return false };
    for piece in middle {
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_matches_with_ellipses_for_anything() {
        for (expected, output, is) in [
            ("a\nb\n", "a\nb", true),
            ("a  b", "a     b\n", true),
            ("a", "a\nb", false),
            ("a…", "a\nb", true),
            ("…b…c", "a b x\ny c", true),
            ("…c…b", "a b c", false),
            ("a … c", "a b c", true),
            ("…c", "a c b", false),
        ] {
            assert_eq!(is_output(expected, output), is, "{expected:?} {output:?}");
        }
    }

    #[test]
    fn ports_are_replaced_as_whole_numbers() {
        let shell = Shell::new();
        let port = &shell.ports["8080"];
        let text = "http://127.0.0.1:8080/v1 18080 8080.5 port=8080\n";
        assert_eq!(shell.with_ports(text), format!("http://127.0.0.1:{port}/v1 18080 8080.5 port={port}\n"));
    }
}
