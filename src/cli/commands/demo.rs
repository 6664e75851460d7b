//! `demo`: a server, a session and a scripted agent, to see what this is about.

use std::fs;
use std::io::{self, BufRead as _, BufReader, IsTerminal as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use uuid::Uuid;

use super::run::utf8;
use super::{Context, string};
use crate::cli::args::{DemoArgs, ServerArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::follow::{Begin, Follow};
use crate::cli::interrupt::{Interrupts, Woken};
use crate::cli::target::Target;
use crate::cli::watch::{CtrlC, Options, Until, Watch};
use crate::limits;

const PROMPT: &str = "Show me what you can do.";

/// `reattach demo`.
///
/// # Errors
/// If no server can be started, and what it or the way to it says.
pub fn demo(args: DemoArgs) -> Outcome {
    // From here on an interrupt must not leave the server behind.
    let mut interrupts = Interrupts::catch(true)?;
    let place = Place::new(args.data_dir)?;
    let server = ServerArgs { data_dir: Some(place.dir.clone()), server: None };
    let started = match Target::new(&server)?.find() {
        Ok(_)
            if Context::new(&server, args.output)?
                .rest
                .get_at::<Value>("/version", &[])
                .is_ok() =>
        {
            None
        }
        _ => Some(Started::serve(&place, &mut interrupts)?),
    };
    let mut context = Context::new(&server, args.output)?;
    let project = match &started {
        Some(_) => utf8(&place.project())?,
        None => {
            utf8(&std::env::current_dir().map_err(|error| cannot("find this directory", &error))?)?
        }
    };
    let body = json!({"provider": "demo", "projectPath": project, "title": "Demo"});
    let session: Value = context.rest.post("/sessions", &body)?;
    let session = string(&session, "id")?;
    let address = context.rest.target().find()?;
    context.screen.say(&format!("page     {}", address.base))?;
    if let Some(token) = &address.token {
        context.screen.say(&format!("token    {}   (the page asks for it)", token.0))?;
    }
    context.screen.say(&format!("session  {session}"))?;
    context.screen.say("Open the page, then close the tab, wait, and open it again:")?;
    context.screen.say("nothing is lost and nothing comes twice.")?;
    let body = json!({
        "content": PROMPT,
        "options": {"demo": {"speed": args.speed}},
        "clientMessageId": Uuid::new_v4().to_string(),
    });
    let accepted: Value =
        context.rest.post_repeatable(&format!("/sessions/{session}/runs"), &body)?;
    let run = string(&accepted, "runId")?;
    let options = Options {
        until: Until::Complete(run.clone()),
        ctrl_c: CtrlC::End,
        no_input: args.no_input,
        deadline: None,
        quiet: false,
    };
    let follow = Follow::new(session, Begin::Run(run));
    let exit = Watch::new(&context.rest, &mut context.screen, follow, options)?.run()?;
    let was_interrupted = interrupts.take();
    if started.is_some() && !was_interrupted && io::stdout().is_terminal() && !args.output.json {
        context.screen.say(&format!("The page stays at {} until Ctrl-C.", address.base))?;
        while interrupts.wait(Duration::from_secs(3600)) == Woken::Elapsed {}
    }
    Ok(exit)
}

/// Where the demo's data lies.
struct Place {
    dir: PathBuf,
    /// Whether it is ours, to be removed at the end.
    temporary: bool,
}

impl Place {
    fn new(given: Option<PathBuf>) -> Result<Self, Failure> {
        let temporary = given.is_none();
        let dir = given.unwrap_or_else(|| {
            std::env::temp_dir().join(format!("reattach-demo-{}", Uuid::new_v4()))
        });
        // For our eyes only: the token lies in it.
        let made = fs::DirBuilder::new().recursive(!temporary).mode(0o700).create(&dir);
        made.map_err(|error| cannot(&format!("make {}", dir.display()), &error))?;
        Ok(Self { dir, temporary })
    }

    fn project(&self) -> PathBuf {
        self.dir.join("demo-project")
    }

    /// The configuration of a server for nothing but the demo.
    fn configure(&self) -> Result<PathBuf, Failure> {
        let project = self.project();
        fs::create_dir_all(&project)
            .map_err(|error| cannot(&format!("make {}", project.display()), &error))?;
        let file = self.dir.join("demo.toml");
        let mut server = toml::Table::new();
        server.insert("project_roots".into(), toml::Value::Array(vec![utf8(&project)?.into()]));
        let mut config = toml::Table::new();
        config.insert("server".into(), toml::Value::Table(server));
        // Should the server be killed, nothing of it stays for long.
        let mut timeouts = toml::Table::new();
        timeouts.insert("orphan_grace".into(), "10s".into());
        config.insert("timeouts".into(), toml::Value::Table(timeouts));
        fs::write(&file, config.to_string())
            .map_err(|error| cannot(&format!("write {}", file.display()), &error))?;
        Ok(file)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary {
            // What cannot be removed is a small directory among other temporary ones.
            fs::remove_dir_all(&self.dir).ok();
        }
    }
}

/// A server that the demo started, and stops.
struct Started(Child);

impl Started {
    fn serve(place: &Place, interrupts: &mut Interrupts) -> Result<Self, Failure> {
        let config = place.configure()?;
        let log = place.dir.join("serve.log");
        let stderr = fs::File::create(&log)
            .map_err(|error| cannot(&format!("write {}", log.display()), &error))?;
        let exe = std::env::current_exe().map_err(|error| cannot("find this program", &error))?;
        let mut child = Command::new(exe)
            .args(["serve", "--json", "--bind", "127.0.0.1:0", "--on-stop", "abort", "--data-dir"])
            .arg(&place.dir)
            .arg("--config")
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr)
            // Ctrl-C at the terminal is for us; we stop the server afterwards.
            .process_group(0)
            .spawn()
            .map_err(|error| cannot("start a server", &error))?;
        let stdout = child.stdout.take();
        let started = Self(child);
        if let Some(stdout) = stdout {
            wait_until_ready(stdout, interrupts).map_err(|why| not_ready(&why, &log))?;
        }
        Ok(started)
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // An error means that it has ended already.
            kill_process(pid, Signal::TERM).ok();
        }
        let end = Instant::now() + limits::DEMO_STOP;
        while Instant::now() < end && matches!(self.0.try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(20));
        }
        self.0.kill().and_then(|()| self.0.wait()).ok();
    }
}

/// Waits for the line that a server prints when its port accepts connections.
fn wait_until_ready(
    stdout: std::process::ChildStdout,
    interrupts: &mut Interrupts,
) -> Result<(), String> {
    let (send, lines) = mpsc::sync_channel(1);
    // The thread ends with the line, or with the server, which is stopped when this fails.
    let reader = std::thread::Builder::new().name("demo-ready".into()).spawn(move || {
        let mut line = String::new();
        let read = BufReader::new(stdout).read_line(&mut line);
        send.send(read.map(|_| line)).ok();
    });
    reader.map_err(|error| error.to_string())?;
    let end = Instant::now() + limits::DEMO_READY;
    loop {
        match lines.try_recv() {
            Ok(Ok(line)) if !line.trim().is_empty() => return Ok(()),
            Ok(Ok(_)) | Err(mpsc::TryRecvError::Disconnected) => {
                return Err("it ended at once".to_owned());
            }
            Ok(Err(error)) => return Err(error.to_string()),
            Err(mpsc::TryRecvError::Empty) => {}
        }
        if Instant::now() >= end {
            return Err("it takes too long".to_owned());
        }
        if interrupts.wait(Duration::from_millis(10)) == Woken::Interrupted {
            return Err("interrupted".to_owned());
        }
    }
}

fn not_ready(why: &str, log: &Path) -> Failure {
    let said = fs::read_to_string(log).unwrap_or_default();
    let mut last: Vec<&str> = said.lines().rev().take(5).collect();
    last.reverse();
    let mut message = format!("the demo's server is not ready: {why}");
    for line in last {
        message.push_str("\n    ");
        message.push_str(line);
    }
    Failure::new(Exit::Failure, "DEMO", message, "reattach serve, which says what it lacks")
}

fn cannot(what: &str, error: &io::Error) -> Failure {
    Failure::new(
        Exit::Failure,
        "DEMO",
        format!("cannot {what}: {error}"),
        "reattach demo --data-dir DIR with a directory that can be written",
    )
}
