//! What a business pod asks the guard agent of its node.

use crate::counter::Counter;
use crate::{PATIENCE, SOCKETS, told};
use anyhow::{Context, ensure};
use guard_client::{Decision, GuardClient, Question};
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Longer than an agent takes to be followed by the next.
const ANSWER: Duration = Duration::from_secs(30);

fn question(action: &str) -> Question<'_> {
    // No principal is this pod, as the broker knows it.
    Question { principal: "", action, resource: r#"Document::"plan""#, context: "" }
}

/// `allow` or `deny`, and what decided.
pub fn ask(action: &str) -> anyhow::Result<()> {
    let guard = GuardClient::join(SOCKETS, PATIENCE).context("joining")?;
    let verdict = guard.ask(&question(action), ANSWER)?;
    println!("{} by {}", word(verdict.decision), verdict.reasons.join(", "));
    Ok(())
}

/// Whatever becomes of the agent.
pub fn load(action: &str) -> anyhow::Result<()> {
    let (told, counter) = (told()?, Counter::start()?);
    let guard = GuardClient::join(SOCKETS, PATIENCE).context("joining")?;
    let mut count = 0u64;
    while !told.load(Ordering::Relaxed) {
        let verdict = guard.ask(&question(action), ANSWER).with_context(|| format!("question {count}"))?;
        ensure!(verdict.decision == Decision::Allow, "question {count}: {}", word(verdict.decision));
        count += 1;
        counter.is(count);
        if count.is_multiple_of(64) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    println!("{count} questions, all allowed");
    Ok(())
}

fn word(decision: Decision) -> &'static str {
    match decision {
        Decision::Allow => "allow",
        Decision::Deny => "deny",
    }
}
