//! The binary with certificates and tokens: what its commands need, and that nothing it says is secret.

use std::process::{Output, Stdio};

use pixeld::security::Group;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::process::{Child, ChildStderr, Command};

use crate::harness::patiently;
use crate::pki::{Authority, Files, Pair};

const TOKEN: &str = "a-token-that-nobody-may-see-1";
const WRONG: &str = "a-wrong-one-that-nobody-may-see-2";

fn pixeld() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_pixeld"));
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

fn said(output: &Output) -> String {
    [&output.stdout[..], &output.stderr].map(String::from_utf8_lossy).concat()
}

/// A daemon with the package inside the binary, which wants a certificate and a token of its clients and logs everything.
struct Server {
    child: Child,
    url: String,
    log: tokio::task::JoinHandle<String>,
    files: Files,
    client: Pair,
}

impl Server {
    fn settings(files: &Files) -> Vec<String> {
        let set = |key: &str, name: &str| format!("{key}={}", files.path(name).display());
        let mut settings = vec![
            set("server.tls.certificate", "server.pem"),
            set("server.tls.key", "server.key"),
            set("server.tls.client_ca", "clients.pem"),
            "log.filter=trace".to_owned(),
        ];
        settings.extend(Group::ALL.map(|group| set(group.key(), "tokens")));
        settings.into_iter().flat_map(|setting| ["--set".to_owned(), setting]).collect()
    }

    async fn start() -> Self {
        let (authority, files) = (Authority::new("ours"), Files::new());
        let client = authority.issue();
        files.tls(&authority.issue(), Some(&authority));
        files.write("tokens", &format!("# who knows\n{TOKEN}\n"));
        files.write("other.pem", &Authority::new("other").pem());
        files.write("token", &format!("{TOKEN}\n"));
        files.write("client.pem", &client.certificate);
        files.write("client.key", &client.key);
        let mut command = pixeld();
        command.args(["serve", "--listen", "127.0.0.1:0"]).args(Self::settings(&files));
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr: ChildStderr = child.stderr.take().unwrap();
        let log = tokio::spawn(async move {
            let mut log = String::new();
            stderr.read_to_string(&mut log).await.unwrap();
            log
        });
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = patiently(lines.next_line()).await.unwrap().expect("it starts");
        let url = format!("https://{}", line.strip_prefix("listening on ").unwrap());
        assert_eq!(patiently(lines.next_line()).await.unwrap().as_deref(), Some("ready"));
        Self { child, url, log, files, client }
    }

    /// `pixeld models` of this server with all that it asks for but what `without` names; `token` in the
    /// environment, and an authority of that name as the system's.
    async fn models(&self, without: &[&str], token: Option<&str>, system: &str) -> Output {
        let mut command = pixeld();
        command.args(["models", "--endpoint", &self.url]).env("SSL_CERT_FILE", self.files.path(system));
        for (flags, names) in [
            (&["--tls-ca"][..], &["clients.pem"][..]),
            (&["--tls-cert", "--tls-key"], &["client.pem", "client.key"]),
            (&["--token-file"], &["token"]),
        ] {
            if !without.contains(&flags[0]) {
                for (flag, name) in flags.iter().zip(names) {
                    command.arg(flag).arg(self.files.path(name));
                }
            }
        }
        command.envs(token.map(|token| ("PIXELD_TOKEN", token)));
        patiently(command.output()).await.unwrap()
    }
}

#[tokio::test]
async fn commands_bring_what_a_server_asks_for_and_nobody_tells_a_secret() {
    let server = Server::start().await;
    let mut all = Vec::new();
    for (without, token, system, code, words) in [
        (&[][..], None, "other.pem", 0, "digits"),
        (&["--token-file"], Some(TOKEN), "other.pem", 0, "digits"),
        // A file goes before the variable, and before the system.
        (&[], Some(WRONG), "other.pem", 0, "digits"),
        (&["--tls-ca"], None, "clients.pem", 0, "digits"),
        (&["--token-file"], None, "other.pem", 64, "this needs a token"),
        (&["--token-file"], Some(WRONG), "other.pem", 64, "--token-file or PIXELD_TOKEN gives one"),
        (&["--token-file"], Some("hidden"), "other.pem", 64, "PIXELD_TOKEN: line 1 must be a token of 16 to 1024"),
        (&["--tls-cert"], None, "other.pem", 69, "connect"),
        (&["--tls-ca"], None, "other.pem", 69, "certificate"),
    ] {
        let output = server.models(without, token, system).await;
        let text = said(&output);
        let what = format!("without {without:?} and with {token:?} in the environment: {text}");
        assert_eq!(output.status.code(), Some(code), "{what}");
        assert!(text.contains(words), "{what}");
        all.push(text);
    }
    for arguments in [&["models", "--help"][..], &["serve", "--help"], &["sample", "--help"], &["--help"]] {
        all.push(said(&pixeld().args(arguments).env("PIXELD_TOKEN", TOKEN).output().await.unwrap()));
    }
    let checked = pixeld().arg("check").args(Server::settings(&server.files)).output().await.unwrap();
    assert!(checked.status.success(), "{}", said(&checked));
    all.push(said(&checked));
    // Faults of the files, at the start and while it runs.
    server.files.write("tokens", &format!("{TOKEN} {WRONG}\n"));
    server.files.write("server.key", &server.client.key);
    let failed =
        pixeld().args(["serve", "--listen", "127.0.0.1:0"]).args(Server::settings(&server.files)).output().await;
    let failed = failed.unwrap();
    assert_eq!(failed.status.code(), Some(64), "{}", said(&failed));
    for part in ["server.tls.key: cannot use ", "auth.scoring_tokens: cannot use ", ": line 1 must be a token"] {
        assert!(said(&failed).contains(part), "{}", said(&failed));
    }
    all.push(said(&failed));

    let Server { mut child, log, files, client, .. } = server;
    let pid = child.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    patiently(child.wait()).await.unwrap();
    let log = patiently(log).await.unwrap();
    for word in ["TLS is on", "Unauthenticated", "TLS handshakes failed", "h2::", "protected=\"generation"] {
        assert!(log.contains(word), "the log says nothing of {word}");
    }
    all.push(log);
    let keys = [client.key, std::fs::read_to_string(files.path("client.key")).unwrap()];
    let lines = keys.iter().flat_map(|key| key.lines()).filter(|line| !line.starts_with("-----"));
    for secret in lines.chain([TOKEN, WRONG]) {
        for text in &all {
            assert!(!text.contains(secret), "{secret} is told: {text}");
        }
    }
}
