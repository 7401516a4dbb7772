//! `podshm domain`: the daemon of one domain for unmodified programs, on a plain machine.

use crate::domain::{By, Setup, Where};
use anyhow::Context;
use podshm_unmodified::{Config, Place, Server};

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
    crate::broker::allow_descriptors();
    let _server = serve(prepare(&arguments.place, &arguments.domain, &arguments.setup)?)?;
    signals.forever().next();
    Ok(())
}

/// The domain as it will be served, set up; what can't be had is refused here, before a predecessor is asked to end.
pub fn prepare(place: &Where, domain: &str, setup: &Setup) -> anyhow::Result<(Place, Config)> {
    let place = Place::of(&place.root, domain)?;
    let config = setup.resolve(&place, domain, By::Daemon)?;
    Ok((place, config))
}

/// A server of the domain, once a predecessor has ended.
pub fn serve((place, config): (Place, Config)) -> anyhow::Result<Server> {
    let (name, mode) = (config.name.clone(), config.mode);
    let at = place.path("");
    let server = Server::start(place, config)?;
    println!("ready: domain {name} for unmodified programs, mode {mode}, at {}", at.display());
    Ok(server)
}
