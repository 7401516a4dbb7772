//! What the programs of node agents begin with: signals, logs, man page and completions.
#![forbid(unsafe_code)]

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use clap::Command;

/// Logs to stderr what RUST_LOG asks for; `info` without it.
pub fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
}

/// From now on SIGTERM and SIGINT end nothing; what is returned says whether one has come.
pub fn told_to_end() -> anyhow::Result<impl Fn() -> bool + Clone> {
    let told = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::flag::register(signal, Arc::clone(&told)).context("registering for SIGTERM and SIGINT")?;
    }
    Ok(move || told.load(Ordering::Relaxed))
}

/// For `make install`: where `--man` or `--completions SHELL` is all that this process was given, prints the man page or the completions, from
/// what the command itself says of its arguments, and says that it did. Before anything is parsed: it comes without what has to be there otherwise.
pub fn describes(command: Command, name: &'static str) -> anyhow::Result<bool> {
    let asked: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    describes_to(&mut std::io::stdout(), &asked, command, name)
}

fn describes_to(out: &mut dyn Write, asked: &[String], command: Command, name: &'static str) -> anyhow::Result<bool> {
    let mut command = command.name(name);
    match asked.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["--man"] => clap_mangen::Man::new(command).render(&mut &mut *out)?,
        ["--completions", shell] => {
            let shell: clap_complete::Shell =
                shell.parse().map_err(|_| anyhow::anyhow!("expected bash, zsh or fish, found {shell:?}"))?;
            clap_complete::generate(shell, &mut command, name, &mut &mut *out);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Arg;

    fn said(asked: &[&str]) -> anyhow::Result<Option<String>> {
        let command = Command::new("x").arg(Arg::new("socket-dir").long("socket-dir").required(true));
        let (mut out, asked) = (Vec::new(), asked.iter().map(ToString::to_string).collect::<Vec<_>>());
        let done = describes_to(&mut out, &asked, command, "podshm-an-agent")?;
        Ok(done.then(|| String::from_utf8(out).unwrap()))
    }

    #[test]
    fn it_describes_what_it_was_asked_for_and_nothing_else() {
        let man = said(&["--man"]).unwrap().unwrap();
        assert!(man.contains("podshm-an-agent") && man.contains("socket\\-dir"), "{man}");
        for shell in ["bash", "zsh", "fish"] {
            let script = said(&["--completions", shell]).unwrap().unwrap();
            assert!(script.contains("podshm-an-agent") && script.contains("socket-dir"), "{script}");
        }
        let error = said(&["--completions", "tcsh"]).unwrap_err().to_string();
        assert!(error.contains("expected bash, zsh or fish, found \"tcsh\""), "{error}");
        assert_eq!(said(&["--socket-dir", "/run/podshm"]).unwrap(), None);
        assert_eq!(said(&["--man", "--socket-dir"]).unwrap(), None, "with something else it is the parser's to say");
    }
}
