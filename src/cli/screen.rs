//! Where text goes: data to stdout, talk to stderr, colour where it is wanted.
//!
//! Knows the two streams and `--json`. Must not know the server.

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};

use serde_json::Value;

use super::args::{ColorWhen, OutputArgs};
use super::render::Renderer;
use super::text::Paint;

/// The two streams of this process.
#[derive(Debug)]
pub struct Screen {
    json: bool,
    renderer: Renderer,
    out_paint: Paint,
    err: Paint,
    /// Flushed before stderr is written and before anything is waited for.
    out: BufWriter<Stdout>,
}

impl Screen {
    /// As the flags say.
    #[must_use]
    pub fn new(output: OutputArgs) -> Self {
        let out_paint = paint(output.color, io::stdout().is_terminal());
        Self {
            json: output.json,
            renderer: Renderer::new(out_paint),
            out_paint,
            err: paint(output.color, io::stderr().is_terminal()),
            out: BufWriter::with_capacity(64 << 10, io::stdout()),
        }
    }

    /// Whether programs read this.
    #[must_use]
    pub const fn is_json(&self) -> bool {
        self.json
    }

    /// The colours of stdout.
    #[must_use]
    pub const fn out_paint(&self) -> Paint {
        self.out_paint
    }

    /// The colours of stderr.
    #[must_use]
    pub const fn err_paint(&self) -> Paint {
        self.err
    }

    /// Shows an event: as JSON exactly as it came, in `frame`, else for people.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn event(&mut self, frame: &str, event: &Value) -> io::Result<()> {
        if self.json {
            return self.json_line(frame);
        }
        let shown = self.renderer.event(event);
        self.out.write_all(shown.out.as_bytes())?;
        if !shown.err.is_empty() {
            self.out.flush()?;
            io::stderr().write_all(shown.err.as_bytes()).ok();
        }
        Ok(())
    }

    /// A line of JSON on stdout, as it is.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn json_line(&mut self, json: &str) -> io::Result<()> {
        self.out.write_all(json.as_bytes())?;
        self.out.write_all(b"\n")
    }

    /// Data for people on stdout, as it is.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn print(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())
    }

    /// One document: `json` for programs, else `text`.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn document(&mut self, json: &Value, text: &str) -> io::Result<()> {
        if self.json {
            self.json_line(&json.to_string())?
        } else {
            self.print(text)?
        }
        self.flush()
    }

    /// A line of talk on stderr. It never stands in the midst of a line of stdout.
    ///
    /// # Errors
    /// If stdout cannot be written. A closed stderr is nobody listening, which is no error.
    pub fn say(&mut self, line: &str) -> io::Result<()> {
        self.say_part(&format!("{line}\n"))
    }

    /// As `say`, without an end of line: for a question.
    ///
    /// # Errors
    /// As `say`.
    pub fn say_part(&mut self, text: &str) -> io::Result<()> {
        let end = self.renderer.break_line();
        self.out.write_all(end.as_bytes())?;
        self.flush()?;
        io::stderr().write_all(text.as_bytes()).ok();
        Ok(())
    }

    /// Lets go of what was written.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// Ends the line that stdout stands in, and lets go of it.
    ///
    /// # Errors
    /// If stdout cannot be written.
    pub fn end(&mut self) -> io::Result<()> {
        let end = self.renderer.break_line();
        self.out.write_all(end.as_bytes())?;
        self.flush()
    }
}

fn paint(when: ColorWhen, terminal: bool) -> Paint {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    match when {
        ColorWhen::Always => Paint::Colour,
        ColorWhen::Auto if terminal && !set("NO_COLOR") && !dumb => Paint::Colour,
        ColorWhen::Auto | ColorWhen::Never => Paint::Plain,
    }
}
