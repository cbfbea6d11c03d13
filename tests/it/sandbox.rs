//! What untrusted bytes may do to a server: nothing but to end the helper process that reads them.

use nerve_sandbox::{Access, Limits, Pool, Request, SandboxError, Settings, Setup};
use nerve_tests::{Folder, Nerve, Streams, eventually, guest, nerve, nerve_binary, seconds};
use serde_json::Value;
use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

const MIB: u64 = 1 << 20;

/// Helpers of this build's binary, with room for three at once.
fn pool(idle: Duration) -> Pool {
    Pool::new(Settings { program: nerve_binary(), memory: 384 * MIB, helpers: 3, idle })
}

fn probe(tenant: &str, words: &str) -> Request {
    Request {
        work: "probe",
        tenant: tenant.to_owned(),
        setup: Setup::default(),
        parts: vec![words.to_owned().into()],
        limits: Limits { memory: 128 * MIB, stack: 16 * MIB, input: MIB, output: MIB },
        timeout: seconds(30),
    }
}

async fn asked(pool: &Pool, tenant: &str, words: &str) -> Result<String, SandboxError> {
    let result = pool.run(&probe(tenant, words)).await;
    result.map(|bytes| String::from_utf8(bytes).expect("the probe answers in text"))
}

async fn pid(pool: &Pool, tenant: &str) -> String {
    asked(pool, tenant, "pid").await.expect("the probe knows its pid")
}

/// Waits until there is no such process, not even one that nobody has waited for.
async fn is_gone(pid: &str) {
    let gone = || async { (!Path::new("/proc").join(pid).exists()).then_some(()) };
    eventually("the helper process is gone", seconds(20), gone).await;
}

#[tokio::test]
async fn helper_reaches_no_file_network_or_process() {
    let pool = pool(seconds(5));
    let secret = tempfile::NamedTempFile::new().unwrap();
    let path = secret.path().display();
    let tried = ["read /etc/hostname".to_owned(), format!("read {path}"), format!("write {path}")];
    for words in tried.iter().map(String::as_str).chain(["socket", "run /bin/true"]) {
        match asked(&pool, "a", words).await {
            Err(SandboxError::Refused(why)) => assert!(why.contains("os error"), "{words}: {why}"),
            other => panic!("{words}: {other:?}"),
        }
    }
    let pid = pid(&pool, "a").await;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1") && status.contains("Seccomp:\t2"), "{status}");
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{name}: {limits}"));
        line[name.len()..].split_whitespace().nth(1).unwrap().to_owned()
    };
    assert_eq!(limit("Max data size"), (128 * MIB).to_string());
    assert_eq!([limit("Max core file size"), limit("Max file size")], ["0", "0"]);
    let environment = fs::read_to_string(format!("/proc/{pid}/environ")).unwrap();
    assert!(!environment.contains("PATH=") && !environment.contains("NERVE_"), "{environment}");
    assert_eq!(asked(&pool, "a", "echo still here").await.unwrap(), "still here");
}

#[tokio::test]
async fn helper_reads_the_files_that_it_is_given_and_no_others() {
    let pool = pool(seconds(5));
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().canonicalize().unwrap();
    fs::create_dir(folder.join("given")).unwrap();
    for file in ["given/file", "alone", "other"] {
        fs::write(folder.join(file), "x").unwrap();
    }
    let access = Access { library: None, readable: vec![folder.join("given"), folder.join("alone")] };
    let tried = async |words: String| {
        let setup = Setup::with_access(Default::default(), access.clone());
        pool.run(&Request { setup, ..probe("a", &words) }).await
    };
    for file in ["given/file", "alone"] {
        let path = folder.join(file);
        assert_eq!(tried(format!("read {}", path.display())).await.unwrap(), b"possible");
        assert!(matches!(tried(format!("write {}", path.display())).await, Err(SandboxError::Refused(_))), "{file}");
    }
    let other = folder.join("other").display().to_string();
    for words in [&format!("read {other}"), "read /etc/hostname", "socket", "run /bin/true"] {
        assert!(matches!(tried(words.to_owned()).await, Err(SandboxError::Refused(_))), "{words}");
    }
    assert!(asked(&pool, "a", &format!("read {}", folder.join("alone").display())).await.is_err(), "another helper");
}

#[tokio::test]
async fn helper_that_passes_a_limit_costs_its_own_request() {
    let pool = pool(seconds(5));
    let bad = [("nest", "a stack of 16 MiB"), ("allocate", "more than 128 MiB"), ("panic", "its reader gave up")];
    for (words, said) in bad {
        let (failed, good) = tokio::join!(asked(&pool, "bad", words), asked(&pool, "good", "echo fine"));
        let failed = failed.unwrap_err();
        assert!(failed.to_string().contains(said) && failed.is_permanent(), "{words}: {failed}");
        assert_eq!(good.unwrap(), "fine");
    }
    let within = |words: &str| Request { timeout: seconds(2), ..probe("slow", words) };
    let helper = String::from_utf8(pool.run(&within("pid")).await.unwrap()).unwrap();
    assert_eq!(pool.run(&within("spin")).await, Err(SandboxError::Timeout(seconds(2))));
    is_gone(&helper).await;
    let large = Request { parts: vec![vec![b' '; 2 * MIB as usize].into()], ..probe("a", "") };
    assert!(matches!(pool.run(&large).await, Err(SandboxError::TooLarge { .. })));
    let helper = pid(&pool, "bad").await;
    pool.close().await;
    is_gone(&helper).await;
}

#[tokio::test]
async fn request_that_is_given_up_ends_its_helper() {
    let pool = pool(seconds(60));
    let helper = pid(&pool, "a").await;
    let spinning = asked(&pool, "a", "spin");
    assert!(tokio::time::timeout(Duration::from_millis(300), spinning).await.is_err());
    is_gone(&helper).await;
    // What it had of the budget is free again.
    let all = futures::future::join_all((0..3).map(|_| asked(&pool, "b", "echo b"))).await;
    assert!(all.into_iter().all(|one| one.unwrap() == "b"));
}

fn kill(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn killed_helper_is_replaced() {
    let pool = pool(seconds(60));
    let idle = pid(&pool, "a").await;
    kill(&idle);
    assert_eq!(asked(&pool, "a", "echo again").await.unwrap(), "again");
    // One that is killed at work, and had served before, costs the request nothing.
    let within = |words: &str| Request { timeout: seconds(6), ..probe("b", words) };
    let busy = String::from_utf8(pool.run(&within("pid")).await.unwrap()).unwrap();
    let before = cpu_ticks(&busy);
    let (spun, ()) = tokio::join!(async { pool.run(&within("spin")).await }, async {
        eventually("it works", seconds(5), || async { (cpu_ticks(&busy) > before + 5).then_some(()) }).await;
        kill(&busy);
    });
    assert_eq!(spun, Err(SandboxError::Timeout(seconds(6))), "a fresh one went on");
    is_gone(&busy).await;
}

/// What a process has computed so far, in ticks of the kernel.
fn cpu_ticks(pid: &str) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit_once(") ").map(|(_, rest)| rest).unwrap_or_default();
    after_name.split(' ').nth(11).and_then(|ticks| ticks.parse().ok()).unwrap_or_default()
}

/// The helper processes that a server has.
fn helpers_of(server: u32) -> Vec<nix::unistd::Pid> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let read = |file: &str| fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let parent = format!("\nPPid:\t{server}\n");
        if read("cmdline").contains("\0sandbox\0") && read("status").contains(&parent) {
            found.push(nix::unistd::Pid::from_raw(pid));
        }
    }
    found
}

#[tokio::test]
async fn helper_serves_one_tenant_and_ends_when_idle() {
    let pool = pool(Duration::from_millis(500));
    let (a, b) = (pid(&pool, "a").await, pid(&pool, "b").await);
    assert_eq!(pid(&pool, "a").await, a, "it is used again");
    assert_ne!(a, b);
    is_gone(&a).await;
    is_gone(&b).await;
    // The budget has room for three: a fourth tenant waits for one of them to go.
    for round in 0..2 {
        let tenants: Vec<String> = (0..6).map(|tenant| tenant.to_string()).collect();
        let said = futures::future::join_all(tenants.iter().map(|tenant| asked(&pool, tenant, "echo x"))).await;
        assert!(said.into_iter().all(|one| one.unwrap() == "x"), "round {round}");
    }
}

#[test]
fn helper_ends_with_its_pipe_while_it_works() {
    let limits = [128 * MIB, 16 * MIB, 60, MIB, MIB].map(|limit| limit.to_string());
    let mut command = Command::new(nerve_binary());
    command.args(["sandbox", "probe"]).args(limits).env("MIMALLOC_ARENA_EAGER_COMMIT", "0");
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut helper = command.spawn().unwrap();
    let mut stdin = helper.stdin.take().unwrap();
    stdin.write_all(&0_u64.to_le_bytes()).unwrap();
    let mut ready = [0; 9];
    helper.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    stdin.write_all(&4_u64.to_le_bytes()).unwrap();
    stdin.write_all(b"spin").unwrap();
    drop(stdin);
    assert!(helper.wait().unwrap().success());
}

#[tokio::test]
async fn helper_command_is_hidden_and_does_nothing_by_itself() {
    let help = nerve::call(nerve::command(["--help"]), "").await.ok();
    assert!(!help.stdout.contains("sandbox"), "{}", help.stdout);
    let called = nerve::call(nerve::command(["sandbox"]), "").await.failed(2);
    assert!(called.stderr.contains("it is no command"), "{called:?}");
}

/// A function that reads documents and nothing else.
const CHUNK: &str = "[function.chunk]\nruntime = \"builtin\"\nuse = \"rag/chunk\"\n\
                     on = [\"events.document.uploaded\"]\nemits = [\"document.chunked\"]\n\
                     timeout = \"8s\"\nretry = { attempts = 1 }\n";

/// A PDF of these objects, all but the page's content and its form.
pub(crate) fn pdf(content: &[u8], content_keys: &str, form: &str) -> Vec<u8> {
    let stream = |keys: &str, bytes: &[u8]| {
        let head = format!("<< /Length {} {keys} >>\nstream\n", bytes.len());
        [head.as_bytes(), bytes, b"\nendstream"].concat()
    };
    let form_keys = "/Type /XObject /Subtype /Form /BBox [0 0 1 1] /Resources << /XObject << /X 6 0 R >> >>";
    let objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>".to_vec(),
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents 4 0 R /Resources \
          << /Font << /F1 5 0 R >> /XObject << /X 6 0 R >> >> >>"
            .to_vec(),
        stream(content_keys, content),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_vec(),
        stream(form_keys, form.as_bytes()),
    ];
    let (mut file, mut offsets) = (b"%PDF-1.4\n".to_vec(), String::new());
    for (index, object) in objects.iter().enumerate() {
        offsets.push_str(&format!("{:010} 00000 n \n", file.len()));
        file.extend(format!("{} 0 obj\n", index + 1).bytes());
        file.extend(object);
        file.extend(b"\nendobj\n");
    }
    let start = file.len();
    file.extend(format!("xref\n0 7\n0000000000 65535 f \n{offsets}trailer\n<< /Size 7 /Root 1 0 R >>\n").bytes());
    file.extend(format!("startxref\n{start}\n%%EOF\n").bytes());
    file
}

/// So many MiB of blanks, deflated.
pub(crate) fn deflated_blanks(mib: usize) -> Vec<u8> {
    let script = format!(
        "import sys, zlib\nz = zlib.compressobj(9)\nout = sys.stdout.buffer\n\
         for _ in range({mib}): out.write(z.compress(b' ' * (1 << 20)))\nout.write(z.flush())"
    );
    let made = Command::new("python3").args(["-c", &script]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    made.stdout
}

pub(crate) async fn upload(nerve: &Nerve, collection: &str, document: &str, media_type: &str, body: Vec<u8>) {
    let url = nerve.url(&format!("/v1/documents?collection={collection}&document={document}"));
    let request = reqwest::Client::new().post(url).header("content-type", media_type).body(body);
    assert_eq!(request.send().await.unwrap().status(), 202, "{document}");
}

/// Documents that were chunked, each with the text of its first chunk.
async fn chunked(streams: &Streams, count: usize) -> Vec<(String, String)> {
    streams.reaches("EVENTS", "events.document.chunked", count, seconds(60)).await;
    let stored = streams.read("EVENTS", "events.document.chunked").await;
    let read = stored.iter().map(|event| {
        let data: Value = serde_json::from_slice(&event.data).unwrap();
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        (text(&data["document"]), text(&data["chunks"][0]["text"]))
    });
    read.collect()
}

#[tokio::test]
async fn hostile_document_costs_nothing_but_itself() {
    let nerve = Nerve::up().await;
    nerve.cli().deploy(Folder::new(CHUNK).path()).await;
    let streams = Streams::connect(&nerve.nats).await;
    let server = u32::try_from(nerve.daemon.pid().as_raw()).unwrap();
    let attributes: Vec<String> = (0..250_000).map(|number| format!("a{number}=1")).collect();
    let hostile = [
        ("nested.pdf", pdf(b"/X Do", "", "/X Do"), "nested too deeply"),
        ("inflated.pdf", pdf(&deflated_blanks(1024), "/Filter /FlateDecode", ""), "more than 256 MiB"),
        ("reopened.html", "<font><i><b><p>".repeat(200_000).into_bytes(), "more than 256 MiB"),
        ("attributes.html", format!("<p {}>x</p>", attributes.join(" ")).into_bytes(), "longer than 8s"),
    ];
    let media_type = |name: &str| if name.ends_with("pdf") { "application/pdf" } else { "text/html" };
    for (name, body, _) in &hostile {
        upload(&nerve, "bad", name, media_type(name), body.clone()).await;
        for number in 0..3 {
            let text = format!("Order {number} beside {name} is paid late.");
            upload(&nerve, "good", &format!("{name}-{number}.txt"), "text/plain", text.into_bytes()).await;
        }
    }
    // What is odd and no attack is read: two thousand nested elements, and a PDF in ASCII that its sender calls a text.
    let deep = format!("{}<p>Deep words.</p>{}", "<div>".repeat(2000), "</div>".repeat(2000));
    upload(&nerve, "odd", "deep.html", "text/html", deep.into_bytes()).await;
    let page = pdf(b"BT /F1 12 Tf 72 720 Td (Late invoices cost more.) Tj ET", "", "");
    upload(&nerve, "odd", "page", "text/plain", page).await;
    let read = chunked(&streams, 14).await;
    let text = |name: &str| read.iter().find(|(document, _)| document == name).map(|(_, text)| text.trim());
    assert_eq!((text("deep.html"), text("page")), (Some("Deep words."), Some("Late invoices cost more.")), "{read:?}");
    let mut peak = 0;
    eventually("the hostile documents are dead", seconds(60), || {
        peak = peak.max(helpers_of(server).into_iter().map(resident_kib).sum());
        let streams = &streams;
        async move { (streams.count("DEAD", "dead.chunk").await == 4).then_some(()) }
    })
    .await;
    assert!(peak < 832 << 10, "helpers had {peak} KiB");
    for dead in streams.read("DEAD", "dead.chunk").await {
        let shown = nerve.cli().run(&["dlq", "show", &dead.sequence.to_string()]).await.ok();
        let name = dead.header("ce-subject");
        let (_, _, said) = hostile.iter().find(|(document, ..)| *document == name).expect("a hostile document");
        assert!(shown.stdout.contains(said), "{name}: {}", shown.stdout);
    }
    assert_eq!(reqwest::get(nerve.url("/readyz")).await.unwrap().status(), 200);
    let peak = status_kib(nerve.daemon.pid(), "VmHWM:");
    assert!(peak < 512 << 10, "the server had {peak} KiB");
    eventually("no helper is left without work", seconds(20), || async { helpers_of(server).is_empty().then_some(()) })
        .await;
}

fn resident_kib(pid: nix::unistd::Pid) -> u64 {
    status_kib(pid, "VmRSS:")
}

/// What the kernel says of a process's memory; 0 where it has ended.
fn status_kib(pid: nix::unistd::Pid, field: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn component_that_cannot_be_compiled_is_not_deployed() {
    let nerve = Nerve::up().await;
    let sum = "(local.set $x (i32.add (local.get $x) (i32.const 77777)))\n".repeat(500_000);
    let large = guest::wasm("large", "events.a", "b", "", &guest::padded(&sum));
    let deploy = |memory: &str, timeout: &str| {
        let mut command = nerve.cli().command(&["deploy", &large.path().display().to_string()]);
        command.env("NERVE_SANDBOX_COMPILE_MEMORY", memory).env("NERVE_SANDBOX_COMPILE_TIMEOUT", timeout);
        nerve::call(command, "")
    };
    let refused = deploy("134217728", "60s").await.failed(1);
    assert!(refused.stderr.contains("more than 128 MiB") && refused.stderr.contains("large.wasm"), "{refused:?}");
    let refused = deploy("603979776", "20ms").await.failed(1);
    assert!(refused.stderr.contains("longer than 20ms"), "{refused:?}");
    assert!(!nerve.cli().run(&["list"]).await.ok().stdout.contains("large"), "nothing was changed");
}
