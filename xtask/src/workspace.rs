//! Where the workspace is, and how `cargo` is called in it.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folder of the workspace manifest.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The names of all packages: the folders under `crates/` that have a manifest, and `xtask`.
pub(crate) fn packages() -> Result<Vec<String>> {
    let folder = root().join("crates");
    let mut names = vec!["xtask".to_owned()];
    for entry in folder.read_dir().with_context(|| format!("cannot list {}", folder.display()))? {
        let path: PathBuf = entry?.path();
        if let (true, Some(name)) = (path.join("Cargo.toml").is_file(), path.file_name()) {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

/// `cargo` with these arguments, in the root of the workspace: the same `cargo` that runs this task.
pub(crate) fn cargo<S: AsRef<str>>(arguments: &[S]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root()).args(arguments.iter().map(AsRef::as_ref));
    command
}

/// Runs a command with its output shown; an exit status other than success is an error that names the command.
pub(crate) fn run(mut command: Command) -> Result<()> {
    let shown = shown(&command);
    eprintln!("$ {shown}");
    let status = command.status().with_context(|| format!("cannot start `{shown}`"))?;
    if !status.success() {
        bail!("`{shown}` failed ({status})");
    }
    Ok(())
}

/// Runs a `cargo build` and returns the path of the program called `name` that it made.
pub(crate) fn build_program(mut command: Command, name: &str) -> Result<PathBuf> {
    let typed = shown(&command);
    eprintln!("$ {typed}");
    command.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let output = command.output().with_context(|| format!("cannot start `{typed}`"))?;
    if !output.status.success() {
        bail!("`{typed}` failed ({})", output.status);
    }
    executable(&String::from_utf8_lossy(&output.stdout), name)
        .with_context(|| format!("`{typed}` made no program called {name}"))
}

/// The path of the program called `name` in cargo's messages.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    messages.lines().rev().find_map(|line| {
        let message: Value = serde_json::from_str(line).ok()?;
        let path = message["executable"].as_str()?;
        (message["target"]["name"] == name).then(|| PathBuf::from(path))
    })
}

/// The commit of the workspace, marked where tracked files differ from it; none outside git.
pub(crate) fn commit() -> Option<String> {
    let git = |arguments: &[&str]| {
        let output = Command::new("git")
            .current_dir(root())
            .arg("--no-optional-locks")
            .args(arguments)
            .output()
            .ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"])?;
    Some(if changed.is_empty() { commit } else { format!("{commit}-changed") })
}

/// A command as one would type it, with `cargo` for the path of that program.
pub(crate) fn shown(command: &Command) -> String {
    let program = Path::new(command.get_program());
    let program = program.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let arguments = command.get_args().map(|a| quoted(&a.to_string_lossy()));
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// An argument as a shell takes it.
pub(crate) fn quoted(argument: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_./=,:+@%".contains(c);
    if !argument.is_empty() && argument.chars().all(plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_workspace() {
        assert!(root().join("Cargo.toml").is_file());
        let packages = packages().expect("crates can be listed");
        assert!(packages.contains(&"mm-metrics".to_owned()) && packages.contains(&"xtask".to_owned()));
    }

    #[test]
    fn finds_the_program_in_the_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"name":"mm_core"},"executable":null}
not json
{"reason":"compiler-artifact","target":{"name":"mm"},"executable":"/t/release/mm"}
{"reason":"build-finished","success":true}"#;
        assert_eq!(executable(messages, "mm"), Some(PathBuf::from("/t/release/mm")));
        assert_eq!(executable("", "mm"), None);
    }

    #[test]
    fn shows_commands_as_typed() {
        assert_eq!(shown(&cargo(&["test", "--", "a b"])), "cargo test -- 'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted("optim.lr=0.1"), "optim.lr=0.1");
    }
}
