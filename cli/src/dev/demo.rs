//! The demonstration: the main path on real parts, step by step, for somebody who sees Keyfold for the first time.

use std::path::Path;

use super::{stack::Stack, up, up::Interrupts};
use crate::exit::{Exit, Failure};

mod files;
mod report;
mod story;

use report::Report;
use story::Story;

/// Plays the demonstration in `dir` and stops everything that it started, also when a step fails or `interrupts`
/// has one.
///
/// # Errors
/// When a step fails; the failure names it.
pub async fn run(dir: &Path, interrupts: &mut Interrupts) -> Result<Exit, Failure> {
    let mut report = Report::new();
    let mut stack = None;
    let mut outcome = tokio::select! {
        outcome = play(dir, &mut stack, &mut report) => outcome,
        _ = interrupts.next() => Err(Failure::new(Exit::Internal, "the demonstration stopped", "it was interrupted")),
    };
    if let Some(stack) = stack {
        let stopped = report.step("Stop everything", stop(dir, stack)).await;
        outcome = outcome.and(stopped);
    }
    outcome?;
    report.summary();
    Ok(Exit::Done)
}

async fn play(dir: &Path, stack: &mut Option<Stack>, report: &mut Report) -> Result<(), Failure> {
    let start = start(dir);
    let stack = stack.insert(report.step("Start the parts", start).await?);
    let story = Story::new(stack)?;
    report.step("Declare a keyspace and an app role", story.declare()).await?;
    report.step("Write a secret", story.write_secret()).await?;
    report.step("Mount it for a pod", story.publish()).await?;
    report.step("Look at the pod's files", story.show_files()).await?;
    report.step("Change the secret", story.change_secret()).await?;
    report.step("Rotate the keyspace's key", story.rotate_key()).await?;
    report.step("Refuse another pod", story.refuse()).await?;
    report.step("Read the audit log", story.read_audit_log()).await?;
    report.step("Unmount", story.unpublish()).await
}

async fn start(dir: &Path) -> Result<Stack, Failure> {
    let stack = Stack::start(dir, &up::programs()?).await?;
    let file = stack.dev_file();
    report::say(&format!(
        "A private Postgres, an issuer of tokens, keyfold-server and keyfold-csi run now:\n\
         \x20 server      {}\n\
         \x20 issuer      {}\n\
         \x20 database    {}\n\
         \x20 CSI socket  {}",
        file.server,
        file.issuer,
        file.database_url,
        file.csi_socket.display()
    ));
    report::say(up::namespace_note(&stack).trim());
    Ok(stack)
}

async fn stop(dir: &Path, stack: Stack) -> Result<(), Failure> {
    stack.stop().await;
    if dir.join("dev.json").exists() {
        return Err(Failure::new(Exit::Internal, "cannot stop", "dev.json is still there"));
    }
    report::say("Driver, server, issuer and Postgres have stopped.");
    Ok(())
}
