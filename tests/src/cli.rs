//! The real `keyfold`, run as an operator runs it.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use keyfold::dev::{process::bare, server};

use crate::bin_dir;

/// An operator's shell: a folder, and variables that name the server, its CA and the token.
pub struct Cli {
    /// The folder that commands run in.
    pub folder: PathBuf,
    variables: Vec<(&'static str, String)>,
}

/// A command that has ended.
pub struct Ran {
    /// Its exit code.
    pub code: i32,
    /// What it wrote to standard output.
    pub bytes: Vec<u8>,
    /// The same as text.
    pub out: String,
    /// What it wrote to standard error.
    pub err: String,
}

impl Cli {
    /// The administrator of a server.
    pub fn administrator(server: &server::Setup, folder: &Path) -> Self {
        let mut cli = Self::nobody(server, folder);
        cli.variables.push(("KEYFOLD_TOKEN_FILE", server.admin_token_file().display().to_string()));
        cli
    }

    /// Somebody without a token.
    pub fn nobody(server: &server::Setup, folder: &Path) -> Self {
        let variables = vec![
            ("KEYFOLD_SERVER", server.url()),
            ("KEYFOLD_CA_FILE", server.ca_file().display().to_string()),
            // What the user who runs the tests is signed in to is not theirs to use.
            ("HOME", folder.display().to_string()),
        ];
        Self { folder: folder.to_owned(), variables }
    }

    /// The same with a variable set, or unset.
    pub fn with(mut self, name: &'static str, value: Option<&str>) -> Self {
        self.variables.retain(|(other, _)| *other != name);
        self.variables.extend(value.map(|value| (name, value.to_owned())));
        self
    }

    /// Somebody who names no server.
    pub fn offline(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), variables: vec![("HOME", folder.display().to_string())] }
    }

    /// Runs `keyfold` with these arguments, parted by spaces, and nothing on standard input.
    pub fn run(&self, arguments: &str) -> Ran {
        self.run_with(arguments, b"")
    }

    /// The same with `input` on standard input.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_with(&self, arguments: &str, input: &[u8]) -> Ran {
        self.run_words(&arguments.split_whitespace().collect::<Vec<_>>(), input)
    }

    /// The same with arguments that may hold spaces.
    ///
    /// # Panics
    /// When it cannot be run.
    pub fn run_words(&self, arguments: &[&str], input: &[u8]) -> Ran {
        let mut command: Command = bare(&bin_dir().join("keyfold"));
        command
            .args(arguments)
            .envs(self.variables.iter().map(|(name, value)| (name, value)))
            .current_dir(&self.folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = command.spawn().expect("keyfold can be run");
        // One that ends before it has read everything says why on stderr.
        let _ = child.stdin.take().expect("a pipe").write_all(input);
        let output = child.wait_with_output().expect("keyfold ends");
        Ran {
            code: output.status.code().expect("an exit code"),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            bytes: output.stdout,
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Runs it and gives its standard output.
    ///
    /// # Panics
    /// When it does not end with exit code 0.
    pub fn ok(&self, arguments: &str) -> String {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "keyfold {arguments}: {}{}", ran.out, ran.err);
        ran.out
    }

    /// Runs it and gives its exit code and the one line that it wrote to standard error.
    ///
    /// # Panics
    /// When it succeeds, prints anything on standard output, or says more or less than one line.
    pub fn fails(&self, arguments: &str) -> String {
        let ran = self.run(arguments);
        assert_ne!(ran.code, 0, "keyfold {arguments} succeeded: {}", ran.out);
        assert_eq!(ran.out, "", "keyfold {arguments} failed and printed something all the same");
        assert_eq!(ran.err.lines().count(), 1, "keyfold {arguments}: {}", ran.err);
        format!("{} {}", ran.code, ran.err.trim_end())
    }

    /// Writes a file into the folder.
    ///
    /// # Panics
    /// When it cannot be written.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        std::fs::write(self.folder.join(name), content).expect("the file can be written");
    }
}
