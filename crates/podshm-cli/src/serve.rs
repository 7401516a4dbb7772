//! `podshm domain`: the daemon of one domain for unmodified programs, on a plain machine.

use crate::domain::{Setup, Where};
use anyhow::Context;
use podshm_unmodified::{Place, Server};

/// What `podshm domain` takes.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    place: Where,
    /// The domain.
    #[arg(long)]
    domain: String,
    #[command(flatten)]
    setup: Setup,
}

/// Sets the domain up if it is not there, and serves it until SIGTERM or SIGINT; its memory stays.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut signals = signal_hook::iterator::Signals::new([15, 2]).context("watching for SIGTERM and SIGINT")?;
    let _server = start(&arguments.place, &arguments.domain, &arguments.setup)?;
    signals.forever().next();
    Ok(())
}

/// A server of the domain.
pub fn start(place: &Where, domain: &str, setup: &Setup) -> anyhow::Result<Server> {
    let place_of = Place::of(&place.root, domain)?;
    let config = setup.resolve(&place_of, domain)?;
    let mode = config.mode;
    let server = Server::start(place_of, config)?;
    println!("ready: domain {domain} for unmodified programs, mode {mode}, at {}", place.root.display());
    Ok(server)
}
