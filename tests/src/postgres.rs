//! A PostgreSQL with pgvector of the test's own, which can be killed and started again on its data.
//!
//! It uses nothing of this crate, so that `nerve-index` tests with the same file.

use std::{
    fs,
    net::TcpListener,
    os::unix::{fs::MetadataExt, process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// The password of its user, which is percent-encoded in URLs.
pub const PASSWORD: &str = "correct/horse@battery";
const ENCODED: &str = "correct%2Fhorse%40battery";
/// Who runs the server where the tests are run by root, which it refuses: nobody.
const NOBODY: u32 = 65_534;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A server on a free port of 127.0.0.1, its data in a temporary folder.
pub struct Postgres {
    child: Child,
    port: u16,
    folder: TempDir,
}

impl Postgres {
    /// Starts one and waits until it answers.
    pub fn start() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let password = folder.path().join("password");
        fs::write(&password, PASSWORD).expect("a password file");
        if is_root(folder.path()) {
            for path in [folder.path(), &password] {
                std::os::unix::fs::chown(path, Some(NOBODY), Some(NOBODY)).expect("a folder for nobody");
            }
        }
        let mut initdb = program("initdb", folder.path());
        initdb.arg("-D").arg(folder.path().join("data")).arg("--pwfile").arg(password);
        initdb.args(["-U", "nerve", "-A", "scram-sha-256", "-E", "UTF8", "--no-locale", "--no-sync"]);
        let made = initdb.output().expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let port = listener.local_addr().expect("a bound address").port();
        drop(listener);
        let child = spawn(port, folder.path());
        let mut server = Self { child, port, folder };
        server.ready();
        server
    }

    /// The URL of one of its databases; there is `postgres`, and what [`execute`](Self::execute) creates.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://nerve:{ENCODED}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs SQL in a database; returns the rows, fields between `|`.
    pub fn execute(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut psql = program("psql", self.folder.path());
        psql.args(["-X", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", &self.url(database), "-c", sql]);
        let output = psql.output().expect("psql runs");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// `kill -9`, and waits for the end of the processes under it, which serve on until they notice.
    pub fn kill9(&mut self) {
        let pid = self.child.id();
        let under = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        let _ = self.child.kill();
        let _ = self.child.wait();
        let deadline = Instant::now() + START_TIMEOUT;
        while under.split_whitespace().any(lives) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Starts it again after [`kill9`](Self::kill9), on the same port and data.
    pub fn restart(&mut self) {
        self.kill9();
        self.child = spawn(self.port, self.folder.path());
        self.ready();
    }

    fn ready(&mut self) {
        let deadline = Instant::now() + START_TIMEOUT;
        while let Err(why) = self.execute("postgres", "select 1") {
            assert!(Instant::now() < deadline, "PostgreSQL does not answer: {why}\n{}", self.log());
            // After a kill the memory of the last one may be in use for a moment, which ends the new one.
            if self.child.try_wait().expect("a child can be waited for").is_some() {
                self.child = spawn(self.port, self.folder.path());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.kill9();
        if std::thread::panicking() {
            eprintln!("---- postgres ----\n{}", self.log());
        }
    }
}

fn spawn(port: u16, folder: &Path) -> Child {
    let log = fs::File::options().append(true).create(true).open(folder.join("log")).expect("a log");
    let mut postgres = program("postgres", folder);
    postgres.arg("-D").arg(folder.join("data")).args(["-p", &port.to_string(), "-k", ""]);
    for setting in ["listen_addresses=127.0.0.1", "fsync=off", "shared_buffers=64MB", "max_connections=50"] {
        postgres.args(["-c", setting]);
    }
    let output = log.try_clone().expect("a log");
    postgres.stdin(Stdio::null()).stdout(output).stderr(log).spawn().expect("postgres starts")
}

/// A program of PostgreSQL's: `NERVE_POSTGRES` names a folder with `bin`, or it is the one that `make setup` installed.
fn program(name: &str, folder: &Path) -> Command {
    let installed = std::env::var_os("NERVE_POSTGRES").map_or_else(installed, PathBuf::from);
    let path = installed.join("bin").join(name);
    assert!(path.is_file(), "no {}: run `make setup` or set NERVE_POSTGRES", path.display());
    let mut command = Command::new(path);
    // psql reads files and variables of its user.
    command.env_clear().env("HOME", folder).env("LC_ALL", "C").current_dir(folder);
    if is_root(folder) || fs::metadata(folder).is_ok_and(|folder| folder.uid() == NOBODY) {
        command.uid(NOBODY).gid(NOBODY);
    }
    command
}

fn installed() -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().find(|folder| folder.join("Makefile").is_file());
    let packages = checkout.expect("this crate stands in the checkout").join(".tools/venv/lib");
    let versions = fs::read_dir(&packages).into_iter().flatten().flatten().map(|entry| entry.path());
    let folders = versions.map(|version| version.join("site-packages/pgserver/pginstall"));
    folders.into_iter().find(|folder| folder.is_dir()).unwrap_or(packages)
}

/// Whether a process is there, and no zombie.
fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with('Z'))
}

/// Whether what this process makes belongs to root.
fn is_root(made: &Path) -> bool {
    fs::metadata(made).is_ok_and(|made| made.uid() == 0)
}
