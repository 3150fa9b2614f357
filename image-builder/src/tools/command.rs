//! One call of a tool: clean environment, and errors that carry the command line, exit status and last lines.

use super::Tool;
use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::io::{Read, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

/// Lines of standard error that a failure shows.
const LAST_LINES: usize = 12;
/// Bytes of standard error that are kept: enough for the last lines, whatever a tool pours out.
const KEPT_ERROR_BYTES: usize = 64 << 10;

/// A call of a tool. It sees no environment but what [`ToolCommand::env`] gives it.
pub struct ToolCommand {
    tool: Tool,
    command: Command,
    arguments: Vec<OsString>,
}

impl ToolCommand {
    pub(super) fn new(tool: Tool, program: &Path) -> Self {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").env("TZ", "UTC").env("PATH", "/usr/bin:/bin");
        Self { tool, command, arguments: Vec::new() }
    }
    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.command.arg(&argument);
        self.arguments.push(argument.as_ref().to_owned());
        self
    }
    /// Adds arguments.
    pub fn args<I, S>(&mut self, arguments: I) -> &mut Self
    where
        I: IntoIterator<Item = S>,
        S: AsRef<OsStr>,
    {
        for argument in arguments {
            self.arg(argument);
        }
        self
    }
    /// Sets a variable.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        self.command.env(name, value);
        self
    }
    /// Sets the folder that the tool runs in.
    pub fn current_dir(&mut self, folder: &Path) -> &mut Self {
        self.command.current_dir(folder);
        self
    }
    /// The call as a standard library command, for callers that keep the process running.
    pub fn into_std(self) -> Command {
        self.command
    }

    /// Runs the tool and returns its standard output.
    ///
    /// # Errors
    /// If it cannot be started or does not end with status 0.
    pub fn run(&mut self) -> Result<Vec<u8>> {
        self.run_with(|_| Ok(()))
    }

    /// Runs the tool, writes its standard input with `feed`, and returns its standard output. A broken pipe
    /// is only a consequence of the tool's failure, which is the error then; any other failure of `feed` ends the tool.
    ///
    /// # Errors
    /// If it cannot be started, does not end with status 0, or `feed` fails.
    pub fn run_with(&mut self, feed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<Vec<u8>> {
        let mut child = self.tied().spawn().with_context(|| format!("start {}", self.line()))?;
        let (fed, output, errors) = std::thread::scope(|scope| {
            let output = child.stdout.take().map(|pipe| scope.spawn(move || read_all(pipe)));
            let errors = child.stderr.take().map(|pipe| scope.spawn(move || read_last(pipe)));
            let fed = feed_child(&mut child, feed);
            if fed.as_ref().is_err_and(|error| !is_broken_pipe(error)) {
                // A stream that ends in its middle is no reason for every tool to end.
                drop(child.kill());
            }
            let join = |thread: Option<std::thread::ScopedJoinHandle<'_, Vec<u8>>>| {
                thread.and_then(|thread| thread.join().ok()).unwrap_or_default()
            };
            (fed, join(output), join(errors))
        });
        let status = child.wait().with_context(|| format!("wait for {}", self.line()))?;
        if fed.as_ref().is_err_and(|error| !is_broken_pipe(error)) {
            return fed.map(|()| output).with_context(|| format!("feed {}", self.tool.name()));
        }
        if !status.success() {
            bail!("{}", self.failure(status, &String::from_utf8_lossy(&errors)));
        }
        fed.with_context(|| format!("feed {}", self.tool.name()))?;
        Ok(output)
    }

    /// The call, tied to this thread, which waits for it: a builder that is killed leaves no tool behind. mkfs.erofs would go
    /// round for ever at the end of half a stream.
    fn tied(&self) -> Command {
        let mut tied = Command::new("/usr/bin/setpriv");
        tied.args(["--pdeathsig", "KILL", "--"]).arg(self.command.get_program());
        tied.args(self.command.get_args()).env_clear();
        tied.envs(self.command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        if let Some(folder) = self.command.get_current_dir() {
            tied.current_dir(folder);
        }
        tied.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        tied
    }

    fn failure(&self, status: ExitStatus, errors: &str) -> String {
        let ended = match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with status {code}"),
            (None, Some(signal)) => format!("was killed by signal {signal}"),
            (None, None) => "ended".to_owned(),
        };
        let lines: Vec<&str> = errors.lines().filter(|line| !line.trim().is_empty()).collect();
        let last = &lines[lines.len().saturating_sub(LAST_LINES)..];
        let said = if last.is_empty() { "it said nothing".to_owned() } else { last.join("\n  ") };
        format!("{} {ended}: {}\n  {said}", self.tool.name(), self.line())
    }

    /// The command line as one would type it, the loader left out.
    fn line(&self) -> String {
        let arguments = self.arguments.iter().skip(3).map(|argument| {
            let text = argument.to_string_lossy();
            if text.contains([' ', '"', '\'', '$', '*']) { format!("'{text}'") } else { text.into_owned() }
        });
        std::iter::once(self.tool.name().to_owned()).chain(arguments).collect::<Vec<_>>().join(" ")
    }
}

fn feed_child(child: &mut Child, feed: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let Some(pipe) = child.stdin.take() else { return Ok(()) };
    let mut pipe = std::io::BufWriter::with_capacity(1 << 20, pipe);
    feed(&mut pipe)?;
    pipe.flush().context("write to its standard input")
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<std::io::Error>().is_some_and(|io| io.kind() == std::io::ErrorKind::BrokenPipe)
    })
}

fn read_all(mut pipe: impl Read) -> Vec<u8> {
    let mut bytes = Vec::new();
    // What was read before an error is all there is to show.
    match pipe.read_to_end(&mut bytes) {
        Ok(_) | Err(_) => bytes,
    }
}

fn read_last(mut pipe: impl Read) -> Vec<u8> {
    let mut kept = Vec::new();
    let mut buffer = [0u8; 4096];
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        kept.extend_from_slice(&buffer[..n]);
        if kept.len() > 2 * KEPT_ERROR_BYTES {
            kept.drain(..kept.len() - KEPT_ERROR_BYTES);
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A call of the host's shell in the place of a loader with its two arguments and a program.
    fn shell(script: &str) -> ToolCommand {
        let mut call = ToolCommand::new(Tool::Mke2fs, Path::new("/bin/sh"));
        call.args(["-c", script, "sh"]);
        call
    }

    #[test]
    fn failures_carry_command_status_and_last_lines() {
        let mut call = shell("seq 1 30 >&2; exit 3");
        call.args(["-U", "a b", "out"]);
        let error = call.run().unwrap_err().to_string();
        assert!(error.starts_with("mke2fs ended with status 3: mke2fs -U 'a b' out\n  19\n"), "{error}");
        assert!(error.ends_with("\n  30"), "{error}");
        let error = shell("kill -9 $$").run().unwrap_err().to_string();
        assert_eq!(error, "mke2fs was killed by signal 9: mke2fs\n  it said nothing");
    }

    #[test]
    fn a_tool_ends_with_the_thread_that_waits_for_it() {
        let start = || {
            let mut tool = shell("echo on; exec sleep 100").tied().spawn().unwrap();
            tool.stdout.as_mut().unwrap().read_exact(&mut [0; 3]).unwrap();
            tool
        };
        let mut tool = std::thread::spawn(start).join().unwrap();
        assert_eq!(tool.wait().unwrap().signal(), Some(9));
    }

    #[test]
    fn feeds_input_and_prefers_the_tools_failure_to_the_broken_pipe() {
        let output = shell("tr a b").run_with(|pipe| Ok(pipe.write_all(b"aaa")?)).unwrap();
        assert_eq!(output, b"bbb");
        let error = shell("echo no space >&2; exit 1").run_with(|pipe| Ok(pipe.write_all(&[0; 8 << 20])?));
        assert!(error.unwrap_err().to_string().contains("no space"));
        // A tool that goes on at the end of half a stream is ended.
        let error = shell("exec sleep 1000").run_with(|_| bail!("bad source")).unwrap_err();
        assert!(format!("{error:#}").contains("bad source"), "{error:#}");
        let error = shell("cat").run_with(|_| bail!("bad source")).unwrap_err();
        assert_eq!(format!("{error:#}"), "feed mke2fs: bad source");
    }

    #[test]
    fn the_environment_is_clean() {
        let output =
            String::from_utf8(shell("env | cut -d= -f1 | sort | tr '\\n' ' '").run().unwrap()).unwrap();
        assert!(!output.contains("HOME") && output.contains("LC_ALL"), "{output}");
    }
}
