//! `podshm pages`: man pages and shell completions, from what the command itself says of its arguments. For `make install`.

use anyhow::Context;
use clap_complete::Shell;
use std::path::{Path, PathBuf};

/// What `podshm pages` takes.
#[derive(clap::Args)]
pub struct Arguments {
    /// Directory that gets man1/, and one for each shell's completions.
    directory: PathBuf,
}

/// Writes them.
pub fn write(command: clap::Command, arguments: &Arguments) -> anyhow::Result<()> {
    let man = arguments.directory.join("man1");
    make(&man)?;
    clap_mangen::generate_to(command.clone(), &man).with_context(|| format!("man pages into {}", man.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let directory = arguments.directory.join(shell.to_string());
        make(&directory)?;
        clap_complete::generate_to(shell, &mut command.clone(), "podshm", &directory)
            .with_context(|| format!("completions into {}", directory.display()))?;
    }
    Ok(())
}

fn make(directory: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))
}
