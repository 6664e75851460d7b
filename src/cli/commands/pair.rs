//! `open` and `pair`: a link that lets one more device in, once.

use std::fs;
use std::io::{self, IsTerminal as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde_json::{Value, json};

use super::Context;
use crate::cli::args::{OutputArgs, ServerArgs};
use crate::cli::exit::{Exit, Failure, Outcome};
use crate::cli::target::Target;
use crate::cli::text::{self, Paint};

/// What a device or a token may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ScopeArg {
    /// Look.
    Read,
    /// Also prompt, answer and stop.
    Control,
    /// Also say who else may come in.
    Admin,
}

impl ScopeArg {
    /// Its name on the wire.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Control => "control",
            Self::Admin => "admin",
        }
    }
}

/// `reattach open`.
#[derive(Debug, Args)]
pub struct OpenArgs {
    /// Print the link, and open nothing
    #[arg(long)]
    pub print: bool,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach pair`.
#[derive(Debug, Args)]
pub struct PairArgs {
    /// What the device may do
    #[arg(long, value_enum, default_value_t = ScopeArg::Control)]
    pub scope: ScopeArg,
    /// What it is called in lists [default: its browser and system]
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// How to find the server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How to speak.
    #[command(flatten)]
    pub output: OutputArgs,
}

/// `reattach open`: the link, in the browser if there is one here.
///
/// # Errors
/// What the server or the way to it says.
pub fn open(args: &OpenArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let pairing = Pairing::ask(&context, &json!({"scope": "admin"}))?;
    let link = pairing.first()?;
    context.screen.document(&pairing.json, &format!("{link}\n"))?;
    if context.screen.is_json() {
        return Ok(Exit::Ok);
    }
    if !args.print && io::stdout().is_terminal() && has_desktop() {
        match open_browser(link, context.rest.target()) {
            Ok(()) => context.screen.say("opening it in the browser")?,
            Err(error) => {
                context.screen.say(&format!("no browser could be started ({error}): open it"))?;
            }
        }
    }
    context.screen.say("it opens once, within ten minutes; for another one: reattach open")?;
    Ok(Exit::Ok)
}

/// `reattach pair`: the link as a code for a phone's camera, and as text.
///
/// # Errors
/// What the server or the way to it says.
pub fn pair(args: &PairArgs) -> Outcome {
    let mut context = Context::new(&args.server, args.output)?;
    let body = json!({"scope": args.scope.word(), "name": args.name});
    let pairing = Pairing::ask(&context, &body)?;
    let first = pairing.first()?.to_owned();
    let local_only = pairing.json["loopbackOnly"] == true;
    let mut shown = String::new();
    if !local_only {
        shown.push_str(&qr(&first, context.screen.out_paint())?);
        shown.push('\n');
    }
    for link in &pairing.links {
        shown.push_str(link);
        shown.push('\n');
    }
    context.screen.document(&pairing.json, &shown)?;
    if context.screen.is_json() {
        return Ok(Exit::Ok);
    }
    if local_only {
        context.screen.say(
            "this server listens on this machine alone, where the link opens. For a phone it needs \
             an address that the phone can reach: see docs/security.md, \"A phone\"",
        )?;
    }
    context.screen.say("it opens once, within ten minutes; for another one: reattach pair")?;
    Ok(Exit::Ok)
}

/// A code from the server, and the links that carry it.
struct Pairing {
    links: Vec<String>,
    json: Value,
}

impl Pairing {
    fn ask(context: &Context, body: &Value) -> Result<Self, Failure> {
        let mut json: Value = context.rest.post("/pair", body)?;
        let code = super::string(&json, "code")?;
        if let Target::Url(base) = context.rest.target() {
            // How the server is reached from here is known better here.
            json["links"] = json!([base.http(&format!("/#code={code}"))]);
            json["loopbackOnly"] = false.into();
        }
        let links = json["links"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let links = links.map(|link| text::clean(link, Paint::Plain)).collect();
        Ok(Self { links, json })
    }

    fn first(&self) -> Result<&str, Failure> {
        self.links.first().map(String::as_str).ok_or_else(|| {
            Failure::new(
                Exit::Failure,
                "NOT_REATTACH",
                "the server's answer has no link",
                "reattach version (client and server may differ)",
            )
        })
    }
}

/// In half blocks. Cameras want dark on light, whatever the terminal's colours are; without colour
/// it is drawn for a dark terminal.
fn qr(link: &str, paint: Paint) -> Result<String, Failure> {
    let code = QrCode::new(link).map_err(|error| {
        Failure::new(
            Exit::Failure,
            "NO_QR",
            format!("the link does not fit into a code: {error}"),
            "reattach pair --json",
        )
    })?;
    let mut renderer = code.render::<Dense1x2>();
    if paint == Paint::Plain {
        let inverted = renderer.dark_color(Dense1x2::Light).light_color(Dense1x2::Dark);
        return Ok(inverted.build() + "\n");
    }
    let drawn = renderer.dark_color(Dense1x2::Dark).light_color(Dense1x2::Light).build();
    Ok(drawn.lines().map(|line| format!("\x1b[30;107m{line}\x1b[0m\n")).collect())
}

fn has_desktop() -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    cfg!(target_os = "macos") || set("DISPLAY") || set("WAYLAND_DISPLAY")
}

/// By way of a file that only its owner can read: what stands on a command line, everybody on this
/// machine can read.
fn open_browser(link: &str, target: &Target) -> io::Result<()> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let dir = match (runtime.filter(|dir| dir.is_absolute()), target) {
        (Some(dir), _) => dir,
        (None, Target::DataDir(dir)) => dir.clone(),
        (None, Target::Url(_)) => return Err(io::Error::other("XDG_RUNTIME_DIR is not set")),
    };
    let file = write_redirect(&dir, link)?;
    let program = if cfg!(target_os = "macos") { "open" } else { "xdg-open" };
    let mut command = Command::new(program);
    command.arg(&file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // It is not waited for: some browsers stay in the foreground.
    command.spawn().map(drop)
}

fn write_redirect(dir: &Path, link: &str) -> io::Result<PathBuf> {
    let path = dir.join("reattach-open.html");
    // Removed first, so that nobody else's file is written to, nor one that others can read.
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    let link = link.replace('&', "&amp;").replace('"', "&quot;").replace('<', "&lt;");
    writeln!(
        file,
        "<!doctype html><meta charset=\"utf-8\"><title>reattach</title>\n\
         <meta http-equiv=\"refresh\" content=\"0;url={link}\">\n<a href=\"{link}\">reattach</a>"
    )?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINK: &str = "http://127.0.0.1:7878/#code=00112233445566778899aabbccddeeff";

    #[test]
    fn a_code_is_a_square_in_either_dress() {
        let plain = qr(LINK, Paint::Plain).expect("it fits");
        let width = plain.lines().next().map(|line| line.chars().count()).expect("a line");
        assert!(plain.lines().all(|line| line.chars().count() == width), "{plain}");
        assert_eq!(plain.lines().count(), width.div_ceil(2));
        let colour = qr(LINK, Paint::Colour).expect("it fits");
        assert!(colour.lines().all(|line| line.starts_with("\x1b[30;107m")), "{colour}");
    }

    #[test]
    fn the_file_that_opens_a_browser_is_its_owners_alone() {
        let dir = tempfile::tempdir().expect("a directory");
        fs::write(dir.path().join("reattach-open.html"), "old").expect("written");
        let path = write_redirect(dir.path(), LINK).expect("written");
        let mode = fs::metadata(&path).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(fs::read_to_string(&path).expect("there").contains(LINK));
    }
}
