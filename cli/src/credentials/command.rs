//! The command that prints the operator's token.

use std::{
    path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use keyfold_core::secret::SecretBytes;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::{NO_TOKEN, TOKEN_LEN_MAX, one_token, read_bounded};
use crate::exit::{Exit, Failure, io_reason};

/// How often an ending command is looked at, once it has closed its standard output.
const PAUSE: Duration = Duration::from_millis(5);

/// A program and its arguments. No shell stands between, unless it is the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenCommand {
    words: Vec<String>,
    timeout_secs: u64,
}

impl TokenCommand {
    /// Takes a command line apart by the shell's rules of quoting. A program that is named relative to this folder is
    /// found from any other.
    ///
    /// # Errors
    /// When the line holds no word, or a quote is not closed.
    pub fn parse(line: &str, timeout: Duration) -> Result<Self, String> {
        let mut words = shlex::split(line).ok_or("the token command has a quote that is not closed")?;
        let program = words.first_mut().filter(|program| !program.is_empty());
        let program = program.ok_or("the token command is empty")?;
        if program.contains('/') {
            let absolute = path::absolute(&*program).map_err(|error| io_reason(&error))?;
            *program =
                absolute.into_os_string().into_string().map_err(|_| "this folder's path is not UTF-8")?;
        }
        Ok(Self { words, timeout_secs: timeout.as_secs().max(1) })
    }

    /// Runs the command and takes what it prints as the token. It has nothing on standard input, which is the
    /// caller's, and shares the caller's standard error and terminal, so that it can ask and explain.
    ///
    /// # Errors
    /// When it cannot be run, fails, takes too long, or prints anything but one token.
    pub fn run(&self) -> Result<SecretBytes, Failure> {
        let mut child =
            self.spawn().map_err(|error| self.failed(&format!("cannot be run: {}", io_reason(&error))))?;
        let printed = self.printed(&mut child);
        if printed.is_err() {
            // One that has ended by itself needs no signal. Its own children are left alone: in a process group of
            // theirs, which could be signalled, they could not ask at the terminal.
            let _ = child.kill();
            let _ = child.wait();
        }
        let token = printed.and_then(|bytes| {
            one_token(&bytes).map_err(|reason| format!("gave no token: its output {reason}"))
        });
        token.map_err(|reason| self.failed(&reason))
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let (program, arguments) = self.words.split_first().ok_or(std::io::ErrorKind::InvalidInput)?;
        Command::new(program).args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()
    }

    /// What the command printed until it ended, with success and in time.
    fn printed(&self, child: &mut Child) -> Result<Zeroizing<Vec<u8>>, String> {
        let deadline = Instant::now() + Duration::from_secs(self.timeout_secs);
        let stdout = child.stdout.take().ok_or("has no standard output")?;
        let (sender, receiver) = mpsc::channel();
        // Left behind when the time is over; it ends with the process at the latest.
        thread::spawn(move || sender.send(read_bounded(stdout)));
        let read = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()));
        let bytes = read.map_err(|_| self.too_slow())?;
        let bytes = bytes.map_err(|error| format!("cannot be read from: {}", io_reason(&error)))?;
        if bytes.len() > TOKEN_LEN_MAX {
            return Err("printed more than 64 KiB".into());
        }
        match self.end(child, deadline)? {
            status if status.success() => Ok(bytes),
            status => Err(format!("failed: {status}")),
        }
    }

    fn end(&self, child: &mut Child, deadline: Instant) -> Result<ExitStatus, String> {
        loop {
            match child.try_wait() {
                Ok(Some(status)) => return Ok(status),
                Ok(None) if Instant::now() < deadline => thread::sleep(PAUSE),
                Ok(None) => return Err(self.too_slow()),
                Err(error) => return Err(format!("cannot be waited for: {}", io_reason(&error))),
            }
        }
    }

    fn too_slow(&self) -> String {
        let time = humantime::format_duration(Duration::from_secs(self.timeout_secs));
        format!("did not end within {time}: raise --token-command-timeout of keyfold login")
    }

    /// Names the program alone: its arguments may be many, and are in the profile.
    fn failed(&self, reason: &str) -> Failure {
        let program = self.words.first().map_or("", String::as_str);
        Failure::new(Exit::Refused, NO_TOKEN, format!("the token command {program} {reason}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(line: &str) -> TokenCommand {
        TokenCommand::parse(line, Duration::from_secs(60)).unwrap()
    }

    fn refusal(command: &TokenCommand) -> String {
        let Err(failure) = command.run() else { panic!("{:?}: taken", command.words) };
        assert_eq!(failure.exit(), Exit::Refused);
        failure.to_string()
    }

    #[test]
    fn words_are_taken_apart_as_a_shell_does_and_no_shell_runs() {
        assert_eq!(command(r#"get --for "a b" 'c d' e\ f"#).words, ["get", "--for", "a b", "c d", "e f"]);
        assert_eq!(
            command("printf %s $HOME;id").run().unwrap_or_else(|f| panic!("{f}")).expose(),
            b"$HOME;id"
        );
        assert_eq!(
            command("sh -c 'printf abc | tr a-c A-C'").run().unwrap_or_else(|f| panic!("{f}")).expose(),
            b"ABC"
        );
        for line in ["", " ", "''", "get 'x"] {
            assert!(TokenCommand::parse(line, Duration::from_secs(1)).is_err(), "{line}");
        }
        let here = std::env::current_dir().unwrap().join("./get");
        assert_eq!(command("./get x").words[0], path::absolute(here).unwrap().to_str().unwrap());
    }

    #[test]
    fn attack_14_a_command_that_gives_no_token_is_refused_without_showing_what_it_printed() {
        let slow = TokenCommand::parse("sleep 600", Duration::from_secs(1)).unwrap();
        let lingering =
            TokenCommand::parse("sh -c 'echo planted; exec >&-; exec sleep 600'", Duration::from_secs(1))
                .unwrap();
        let refusals = [
            refusal(&command("/nowhere/get")),
            refusal(&command("true")),
            refusal(&command("sh -c 'echo planted; exit 3'")),
            refusal(&command("sh -c 'echo planted; kill -9 $$'")),
            refusal(&command("echo planted value")),
            refusal(&command("yes planted")),
            refusal(&slow),
            refusal(&lingering),
        ];
        insta::assert_snapshot!(refusals.join("\n"), @r"
        cannot get the operator's token: the token command /nowhere/get cannot be run: No such file or directory.
        cannot get the operator's token: the token command true gave no token: its output is empty.
        cannot get the operator's token: the token command sh failed: exit status: 3.
        cannot get the operator's token: the token command sh failed: signal: 9 (SIGKILL).
        cannot get the operator's token: the token command echo gave no token: its output does not hold one word of visible ASCII characters.
        cannot get the operator's token: the token command yes printed more than 64 KiB.
        cannot get the operator's token: the token command sleep did not end within 1s: raise --token-command-timeout of keyfold login.
        cannot get the operator's token: the token command sh did not end within 1s: raise --token-command-timeout of keyfold login.
        ");
    }

    #[test]
    fn a_command_finds_nothing_on_standard_input() {
        assert!(refusal(&command("cat")).contains("is empty"));
    }
}
