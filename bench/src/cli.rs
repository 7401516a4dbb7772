//! The command line.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

use crate::harness::Length;
use crate::machine::{self, Cores, Machine};
use crate::placement::Place;
use crate::row::Plan;
use crate::{harness, peer, report, rows, watchdog};

/// podshm beside its peers, in one run, as ratios to a raw ring that trusts its peer.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Measure rows with this name, or whose name contains it, and what they are compared with; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,

    /// Stop after so many rounds, interleaved over all rows
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,

    /// Begin no round after so many seconds; three rounds are always measured
    #[arg(long, default_value_t = 220)]
    seconds: u64,

    /// How long to measure each figure in each round
    #[arg(long, value_name = "MS", default_value_t = 20)]
    budget_ms: u64,

    /// Three rounds: whether it works, not how fast it is
    #[arg(long)]
    quick: bool,

    /// Also write the figures, round by round, to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Only print the names of the rows
    #[arg(long)]
    list: bool,

    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// The other process; started by the first
    #[command(hide = true)]
    Peer {
        #[arg(long)]
        row: String,
        #[arg(long)]
        core: usize,
    },
    /// One more process; started by a row
    #[command(hide = true)]
    Task {
        #[arg(long)]
        row: String,
        #[arg(last = true)]
        arguments: Vec<String>,
    },
}

/// Runs the program. Exit code 1: it didn't work; 2: a fatal target was missed; 3: it hung.
pub fn run() -> ExitCode {
    match dispatch(Args::parse()) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("podshm-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: Args) -> Result<ExitCode> {
    let named = |row: &str| {
        rows::all().into_iter().find(|known| known.name() == row).with_context(|| format!("no row is called {row}"))
    };
    match &args.role {
        Some(Role::Peer { row, core }) => {
            peer::serve(named(row)?.as_ref(), *core)?;
            return Ok(ExitCode::SUCCESS);
        }
        Some(Role::Task { row, arguments }) => {
            named(row)?.task(arguments)?;
            return Ok(ExitCode::SUCCESS);
        }
        None => {}
    }
    machine::raise_descriptor_limit();
    let rows = harness::select(rows::all(), &args.only)?;
    if args.list {
        rows.iter().for_each(|row| println!("{:20} {}", row.name(), row.title()));
        return Ok(ExitCode::SUCCESS);
    }
    let rounds = if args.quick { 3 } else { args.rounds };
    let length = Length { rounds, time: Duration::from_secs(args.seconds) };
    let plan = Plan { budget: Duration::from_millis(args.budget_ms) };
    let cores = Cores::choose()?;
    let machine = Machine::describe(cores);
    watchdog::start();
    let outcome = harness::run(&rows, length, plan, cores)?;
    print!("{}", report::text(&machine, &rows, &outcome));
    if let Some(path) = &args.json {
        report::json(path, &machine, &outcome)?;
    }
    let fatal = rows.iter().any(|row| row.targets().iter().any(|target| target.fatal));
    if fatal && outcome.verdicts.iter().all(|verdict| !verdict.fatal) {
        eprintln!(
            "podshm-bench: the cores moved too often to say whether the raw ring is a fair denominator; run it again"
        );
        return Ok(ExitCode::from(2));
    }
    if let Some(verdict) = outcome.verdicts.iter().find(|v| v.fatal && !v.met) {
        let place = verdict.place.map_or("", Place::name);
        eprintln!(
            "podshm-bench: {}: {} {place} is to be {}, found {:.2}; the other figures mean nothing beside it",
            verdict.row, verdict.metric, verdict.bound, verdict.found
        );
        return Ok(ExitCode::from(2));
    }
    Ok(ExitCode::SUCCESS)
}
