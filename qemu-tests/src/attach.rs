//! Joins a terminal to a machine's serial console until Ctrl-] is typed. QEMU serves one such connection at a time.

use crate::machine::SERIAL_SOCKET;
use crate::socket;
use crate::vm::Vm;
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io::{IsTerminal, Read, Write, stdin, stdout};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// Ctrl-], as telnet has it.
const LEAVE: u8 = 0x1d;
const PATIENCE: Duration = Duration::from_secs(10);

/// Why an attached console ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The user typed Ctrl-].
    Left,
    /// Standard input ended.
    Input,
    /// QEMU closed the connection.
    Machine,
}

/// Attaches standard input and output.
///
/// # Errors
/// If the machine does not run, or the terminal cannot be set up.
pub fn attach(vm: &Vm) -> Result<End> {
    let mut console = socket::connect(vm.folder(), SERIAL_SOCKET, PATIENCE)
        .context("connect to the console; does the machine run?")?;
    let _raw = Raw::enter()?;
    let end = join(&mut console, &mut stdin().lock(), &mut stdout().lock());
    // The shell's prompt begins on a line of its own.
    stdout().write_all(b"\r\n").context("write to the terminal")?;
    end
}

fn join<I: Read + AsFd>(console: &mut UnixStream, input: &mut I, output: &mut impl Write) -> Result<End> {
    let mut buffer = [0; 4096];
    loop {
        let (from_machine, from_user) = ready(console, input)?;
        if from_machine {
            match console.read(&mut buffer).context("read the console")? {
                0 => return Ok(End::Machine),
                n => output
                    .write_all(&buffer[..n])
                    .and_then(|()| output.flush())
                    .context("show the console")?,
            }
        }
        if from_user {
            let n = input.read(&mut buffer).context("read the terminal")?;
            let typed = &buffer[..n];
            let until = typed.iter().position(|byte| *byte == LEAVE);
            console.write_all(&typed[..until.unwrap_or(n)]).context("write to the console")?;
            if until.is_some() {
                return Ok(End::Left);
            }
            if n == 0 {
                return Ok(End::Input);
            }
        }
    }
}

fn ready(console: &UnixStream, input: &impl AsFd) -> Result<(bool, bool)> {
    let mut sources =
        [PollFd::new(console.as_fd(), PollFlags::POLLIN), PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    poll(&mut sources, PollTimeout::NONE).context("wait for console and terminal")?;
    Ok((sources[0].any() == Some(true), sources[1].any() == Some(true)))
}

/// A terminal that hands over every key; as it was before when dropped.
struct Raw(Option<Termios>);

impl Raw {
    fn enter() -> Result<Self> {
        if !stdin().is_terminal() {
            return Ok(Self(None));
        }
        let before = tcgetattr(stdin()).context("ask for the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(stdin(), SetArg::TCSANOW, &raw).context("set the terminal up")?;
        Ok(Self(Some(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(before) = &self.0
            && let Err(error) = tcsetattr(stdin(), SetArg::TCSANOW, before)
        {
            eprintln!("restore the terminal: {error}; `stty sane` does it");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `typed` as the user, `said` as the machine; gives the end, what the machine got and what was shown.
    fn session(typed: &[u8], said: &[u8]) -> (End, Vec<u8>, Vec<u8>) {
        let (mut console, mut machine) = UnixStream::pair().unwrap();
        let (mut terminal, mut user) = UnixStream::pair().unwrap();
        machine.write_all(said).unwrap();
        user.write_all(typed).unwrap();
        user.shutdown(std::net::Shutdown::Write).unwrap();
        let mut shown = Vec::new();
        let end = join(&mut console, &mut terminal, &mut shown).unwrap();
        drop(console);
        let mut got = Vec::new();
        machine.read_to_end(&mut got).unwrap();
        (end, got, shown)
    }

    #[test]
    fn the_leave_key_ends_and_is_not_passed_on() {
        let (end, got, shown) = session(b"ls\n\x1dlost", b"login: ");
        assert_eq!(
            (end, got.as_slice(), shown.as_slice()),
            (End::Left, b"ls\n".as_slice(), b"login: ".as_slice())
        );
    }

    #[test]
    fn the_end_of_input_ends_after_it_was_passed_on() {
        let (end, got, _) = session(b"poweroff\n", b"");
        assert_eq!((end, got.as_slice()), (End::Input, b"poweroff\n".as_slice()));
    }
}
