//! `podshm rollout`: what a platform engineer starts, watches, pauses and trusts.
//!
//! All of it goes through the API server: whoever may change AgentRollouts may use it, from anywhere.

mod facts;
mod report;
mod show;

use anyhow::{Context, bail, ensure};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::{Client, ResourceExt};
use podshm_api::rollout::{AgentRollout, AgentRolloutStatus, Phase};
use podshm_rollout::{Plan, plan};
use serde::Serialize;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Who the API server says has changed the object.
const MANAGER: &str = "podshm-cli";

/// What `podshm rollout` does.
#[derive(clap::Subcommand)]
pub enum Verb {
    /// Says exactly what would be done, and what is in the way, without touching anything. Status 1 if it would be refused.
    Plan {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        output: Output,
    },
    /// Plans, and starts if nothing is in the way.
    Start {
        /// File with an AgentRollout, in YAML or JSON.
        #[arg(short, long)]
        file: PathBuf,
        #[command(flatten)]
        output: Output,
    },
    /// Says where a rollout is.
    Status {
        /// The rollout.
        name: String,
        /// Until it is over or waits for somebody.
        #[arg(short, long)]
        watch: bool,
        /// Each node of it, too.
        #[arg(long)]
        nodes: bool,
        #[command(flatten)]
        output: Output,
    },
    /// Begins no new step. What goes back is not paused.
    Pause(Named),
    /// Goes on, after a pause, or after somebody has looked at what failed.
    Resume(Named),
    /// Lets the next batch begin, or all up to a number.
    Approve {
        #[command(flatten)]
        which: Named,
        /// Batches up to this one.
        #[arg(long)]
        batch: Option<u32>,
    },
    /// Ends a rollout where it is: what is moved stays moved.
    Abort(Named),
    /// Brings everything back: workloads first, then label and taint. One that is over stays as it is.
    Rollback(Named),
    /// Writes what was done when as one HTML page, for a change ticket.
    Report {
        /// The rollout.
        name: String,
    },
}

/// A rollout, and how it is printed once it is changed.
#[derive(clap::Args)]
pub struct Named {
    /// The rollout.
    name: String,
    #[command(flatten)]
    output: Output,
}

/// A rollout that is in the cluster, or one in a file.
#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub struct Which {
    /// The rollout.
    name: Option<String>,
    /// File with an AgentRollout, in YAML or JSON.
    #[arg(short, long)]
    file: Option<PathBuf>,
}

/// How it is printed.
#[derive(clap::Args)]
pub struct Output {
    /// For programs.
    #[arg(short, long, value_enum)]
    output: Option<Format>,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Format {
    Json,
    Yaml,
}

/// Does it.
pub fn run(verb: Verb) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = Client::try_default().await.context("no cluster: set KUBECONFIG, or run in a pod")?;
        with(&client, verb).await
    })
}

async fn with(client: &Client, verb: Verb) -> anyhow::Result<ExitCode> {
    let rollouts: Api<AgentRollout> = Api::all(client.clone());
    match verb {
        Verb::Plan { which, output } => {
            let rollout = match (which.name, which.file) {
                (Some(name), _) => found(&rollouts, &name).await?,
                (None, Some(file)) => read(&file)?,
                (None, None) => bail!("expected a name or --file"),
            };
            let plan = planned(client, &rollout).await?;
            print(&plan, &output, || show::plan(&plan))?;
            Ok(if plan.refusals.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Verb::Start { file, output } => {
            let rollout = read(&file)?;
            let name = rollout.name_any();
            let mut again = None;
            if let Some(found) = rollouts.get_opt(&name).await? {
                let phase = found.status.map(|status| status.phase).unwrap_or_default();
                // Another text has the controller look again; the same one, after the cluster was changed, would not.
                again = (phase == Phase::Refused).then(|| found.spec.attempt.saturating_add(1));
                ensure!(
                    matches!(phase, Phase::Pending | Phase::Refused),
                    "rollout {name} is there and is {phase:?}; give this one another name, or delete that one"
                );
            }
            let plan = planned(client, &rollout).await?;
            print(&plan, &output, || show::plan(&plan))?;
            ensure!(plan.refusals.is_empty(), "not started; see above for what to change");
            let object = serde_json::to_value(&rollout)?;
            rollouts.patch(&name, &PatchParams::apply(MANAGER), &Patch::Apply(&object)).await?;
            if let Some(attempt) = again {
                let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
                rollouts.patch(&name, &parameters, &Patch::Merge(json!({"spec": {"attempt": attempt}}))).await?;
            }
            eprintln!("\nstarted; watch it: podshm rollout status {name} --watch");
            Ok(ExitCode::SUCCESS)
        }
        Verb::Status { name, watch, nodes, output } => loop {
            let rollout = found(&rollouts, &name).await?;
            let status = rollout.status.clone().unwrap_or_default();
            if watch && output.output.is_none() {
                // To the top of an empty screen.
                print!("\x1b[H\x1b[2J");
            }
            let now = Timestamp::now().as_second();
            if nodes {
                let nodes = facts::nodes(client, &rollout).await?;
                let both = || show::status(&rollout, now) + &show::nodes(&nodes, now);
                print(&json!({"status": status, "nodes": nodes}), &output, both)?;
            } else {
                print(&status, &output, || show::status(&rollout, now))?;
            }
            let waits = status.phase.is_over() || matches!(status.phase, Phase::Paused | Phase::AwaitingApproval);
            if !watch || waits {
                return Ok(exit_of(&status));
            }
            tokio::time::sleep(Duration::from_secs(2)).await;
        },
        Verb::Pause(which) => steer(&rollouts, &which, json!({"paused": true}), "pauses").await,
        Verb::Resume(which) => {
            let failures = found(&rollouts, &which.name).await?.status.unwrap_or_default().failures;
            steer(&rollouts, &which, json!({"paused": false, "resumedFailures": failures}), "goes on").await
        }
        Verb::Approve { which, batch } => {
            let rollout = found(&rollouts, &which.name).await?;
            let next = rollout.status.unwrap_or_default().batch + 1;
            let batch = batch.unwrap_or(next);
            let what = format!("may begin batches up to {batch}");
            steer(&rollouts, &which, json!({"approved": batch}), &what).await
        }
        Verb::Abort(which) => steer(&rollouts, &which, json!({"stop": "Abort"}), "ends where it is").await,
        Verb::Rollback(which) => steer(&rollouts, &which, json!({"stop": "RollBack"}), "goes back").await,
        Verb::Report { name } => {
            let rollout = found(&rollouts, &name).await?;
            // Whoever may see rollouts and nothing else has a page without what nodes and pods say, and is told so.
            let without = |error: anyhow::Error| eprintln!("the page is without what can't be seen: {error:#}");
            let mut nodes = facts::nodes(client, &rollout).await.map_err(without).unwrap_or_default();
            facts::ways(client, &rollout, &mut nodes).await;
            let moved = facts::moved(client, &rollout).await.map_err(without).unwrap_or_default();
            print!("{}", report::page(&rollout, &nodes, &moved));
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn found(rollouts: &Api<AgentRollout>, name: &str) -> anyhow::Result<AgentRollout> {
    rollouts
        .get_opt(name)
        .await?
        .with_context(|| format!("no AgentRollout {name} in this cluster (kubectl get agentrollouts)"))
}

async fn planned(client: &Client, rollout: &AgentRollout) -> anyhow::Result<Plan> {
    // Gates' queries are not asked from here: an address of the cluster's may be somebody else's where a person sits. The controller asks them.
    let world = podshm_controller::rollout::look(client, Timestamp::now().as_second()).await?;
    Ok(plan(rollout, &world))
}

/// An AgentRollout from a file: what it has too much is an error as well.
fn read(file: &Path) -> anyhow::Result<AgentRollout> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    let value: Value = serde_saphyr::from_str(&text).with_context(|| format!("{} is no YAML", file.display()))?;
    let kind = (value["apiVersion"].as_str().unwrap_or_default(), value["kind"].as_str().unwrap_or_default());
    ensure!(
        kind == ("podshm.dev/v1alpha1", "AgentRollout"),
        "{}: expected kind AgentRollout of podshm.dev/v1alpha1, found {:?} of {:?}",
        file.display(),
        kind.1,
        kind.0
    );
    let rollout: AgentRollout = serde_json::from_value(value).with_context(|| format!("{}", file.display()))?;
    ensure!(rollout.metadata.name.is_some(), "{}: metadata.name is missing", file.display());
    Ok(rollout)
}

async fn steer(rollouts: &Api<AgentRollout>, which: &Named, spec: Value, what: &str) -> anyhow::Result<ExitCode> {
    let name = &which.name;
    let phase = found(rollouts, name).await?.status.unwrap_or_default().phase;
    may_be_steered(name, phase, &spec)?;
    let parameters = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
    let changed = rollouts.patch(name, &parameters, &Patch::Merge(json!({"spec": spec}))).await?;
    print(&changed, &which.output, || format!("rollout {name} {what}\n"))?;
    Ok(ExitCode::SUCCESS)
}

/// What the controller would not heed is refused.
fn may_be_steered(name: &str, phase: Phase, spec: &Value) -> anyhow::Result<()> {
    ensure!(
        !(phase == Phase::Completed && spec["stop"] == "RollBack"),
        "rollout {name} is over: Completed, and its taint is gone; docs/rollout.md has the way back by hand"
    );
    ensure!(!phase.is_over(), "rollout {name} is over: {phase:?}");
    ensure!(
        !(phase == Phase::RollingBack && spec["paused"] == true),
        "rollout {name} goes back, which is not paused: half of a way back leaves business on both forms; `abort` leaves everything where it is"
    );
    Ok(())
}

/// 0 while all is well, 1 where somebody should look.
fn exit_of(status: &AgentRolloutStatus) -> ExitCode {
    match status.phase {
        Phase::Refused | Phase::Paused | Phase::RollingBack | Phase::RolledBack => ExitCode::FAILURE,
        _ => ExitCode::SUCCESS,
    }
}

fn print<T: Serialize>(value: &T, output: &Output, for_people: impl Fn() -> String) -> anyhow::Result<()> {
    match output.output {
        Some(Format::Json) => println!("{}", serde_json::to_string_pretty(value)?),
        Some(Format::Yaml) => print!("{}", serde_saphyr::to_string(value)?),
        None => print!("{}", for_people()),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_be_heeded_is_refused() {
        let (pause, back) = (json!({"paused": true}), json!({"stop": "RollBack"}));
        let said = |phase, spec: &Value| {
            may_be_steered("routing", phase, spec).err().map_or(String::new(), |error| error.to_string())
        };
        for (phase, spec, expected) in [
            (Phase::Running, &pause, ""),
            (Phase::RollingBack, &pause, "goes back, which is not paused"),
            (Phase::RollingBack, &json!({"stop": "Abort"}), ""),
            (Phase::RolledBack, &pause, "is over: RolledBack"),
            (Phase::Completed, &back, "the way back by hand"),
            (Phase::Paused, &back, ""),
        ] {
            let found = said(phase, spec);
            assert!(found.contains(expected) && found.is_empty() == expected.is_empty(), "{phase:?} {spec}: {found}");
        }
    }

    #[test]
    fn a_file_that_is_no_rollout_says_what_was_expected() {
        let directory = std::env::temp_dir().join(format!("podshm-rollout-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let read_text = |text: &str| {
            let file = directory.join("rollout.yaml");
            std::fs::write(&file, text).unwrap();
            read(&file)
        };
        let good = "apiVersion: podshm.dev/v1alpha1\nkind: AgentRollout\nmetadata: {name: routing}\n\
                    spec:\n  agents: [{namespace: routing, name: agent}]\n  batches: [{count: 1}, {percent: 100}]\n";
        let rollout = read_text(good).unwrap();
        assert_eq!((rollout.spec.batches.len(), rollout.spec.soak_seconds), (2, 60));
        for (text, expected) in [
            (good.replace("AgentRollout", "DaemonSet"), "expected kind AgentRollout"),
            (good.replace("metadata: {name: routing}\n", "metadata: {}\n"), "metadata.name is missing"),
            (good.replace("count: 1", "count: many"), "rollout.yaml"),
            ("a: [".into(), "is no YAML"),
        ] {
            let error = format!("{:#}", read_text(&text).unwrap_err());
            assert!(error.contains(expected), "{error}");
        }
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
