//! What the demonstration prints: a heading and a time for each step, and the summary.

use std::time::{Duration, Instant};

use crate::{
    exit::Failure,
    output::{columns, write},
};

/// The steps so far, with the time that each took.
pub struct Report {
    start: Instant,
    steps: Vec<(String, Duration)>,
}

impl Report {
    /// No steps yet.
    pub fn new() -> Self {
        Self { start: Instant::now(), steps: Vec::new() }
    }

    /// Runs one step under its heading.
    ///
    /// # Errors
    /// The step's failure, with its number and title.
    pub async fn step<T>(
        &mut self,
        title: &str,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let number = self.steps.len() + 1;
        print(&format!("\n== {number}. {title}\n"));
        let start = Instant::now();
        let result = work.await;
        let took = start.elapsed();
        print(&format!("   ({})\n", seconds(took)));
        self.steps.push((title.to_owned(), took));
        result.map_err(|failure| {
            Failure::new(failure.exit(), format!("step {number} ({title}) failed"), failure.to_string())
        })
    }

    /// Prints every step with its time.
    pub fn summary(&self) {
        let steps = self.steps.iter().enumerate();
        let rows =
            steps.map(|(index, (title, took))| [format!("{}.", index + 1), title.clone(), seconds(*took)]);
        print("\n== Summary: everything worked\n");
        say(columns(rows).trim_end());
        say(&format!("All in {}.", seconds(self.start.elapsed())));
    }
}

/// Prints `text`, indented below the step's heading.
pub fn say(text: &str) {
    for line in text.lines() {
        print(&format!("   {line}\n"));
    }
}

fn print(text: &str) {
    // Nobody reads on; the steps still do their work, and the exit code says how it went.
    let _ = write(text.as_bytes());
}

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}
