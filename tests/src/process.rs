//! A real process of the program.

use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How long a process may take to be ready or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// One process. It is killed when dropped.
pub struct Process {
    child: Child,
    log: PathBuf,
}

fn program() -> String {
    std::env::var("COUNTERSIGN_BIN").expect("COUNTERSIGN_BIN is not set: run scripts/test")
}

impl Process {
    /// Starts the program with `arguments` and `environment` and nothing else of ours in it; its words go to `log`.
    pub fn start(arguments: &[&str], environment: &[(String, String)], log: PathBuf) -> Self {
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .unwrap();
        let mut command = Command::new(program());
        for (name, _) in std::env::vars() {
            if name.starts_with("COUNTERSIGN_") || name == "DATABASE_URL" || name == "AMQP_URL" {
                command.env_remove(name);
            }
        }
        let child = command
            .args(arguments)
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .spawn()
            .unwrap();
        Self { child, log }
    }

    /// Runs the program to its end. Gives the status, standard output and standard error.
    pub fn run(
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> (ExitStatus, String, String) {
        let output = Command::new(program())
            .args(arguments)
            .env_remove("DATABASE_URL")
            .env_remove("AMQP_URL")
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        (output.status, text(output.stdout), text(output.stderr))
    }

    /// Everything that it said so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Returns the text behind `mark` in what it says, once it says it.
    pub async fn says(&mut self, mark: &str) -> String {
        match self.says_or_crashes(mark).await {
            Ok(text) => text,
            Err(status) => panic!(
                "ended with {status} before it said {mark:?}:\n{}",
                self.said()
            ),
        }
    }

    /// The same; or how it ended before.
    pub async fn says_or_crashes(&mut self, mark: &str) -> Result<String, ExitStatus> {
        let began = Instant::now();
        loop {
            let ended = self.child.try_wait().unwrap();
            let said = self.said();
            if let Some((_, rest)) = said.split_once(mark) {
                return Ok(rest.lines().next().unwrap_or_default().to_owned());
            }
            if let Some(status) = ended {
                return Err(status);
            }
            assert!(began.elapsed() < PATIENCE, "never said {mark:?}:\n{said}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// `kill -9`.
    pub fn kill(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }

    /// SIGTERM, and the end of the process.
    pub async fn terminate(&mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        Command::new("kill").args(["-TERM", &pid]).status().unwrap();
        self.ended().await
    }

    /// Waits for the end.
    pub async fn ended(&mut self) -> ExitStatus {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(began.elapsed() < PATIENCE, "does not end:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
