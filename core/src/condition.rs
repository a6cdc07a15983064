//! Conditions of app roles, in Rego: what must hold beside the bindings. A condition sees the caller, the request and
//! the time, and nothing else: no data, no machine, no network. It is evaluated in this process by regorus.
//!
//! What bounds a condition, since whoever may write roles may write any text:
//!
//! - Its source is looked at before regorus sees it (`source`), and its syntax tree before it runs (`module`): length,
//!   nesting, number of rules, no recursion, only functions of a short list (`builtins`), none of which does I/O or
//!   makes much from little, and only flat values (`shapes`). What these looks and the engine's own preparation take is
//!   counted (`effort`), so that a compilation ends by itself, and a condition holds at most some MiB.
//! - It runs on a thread of its own (`sandbox`), with a stack for the deepest condition that is taken, and at most
//!   [`CPU_MAX`] of that thread's CPU time, which regorus checks at each step. The thread's time and not the wall's, so
//!   that a busy machine refuses nobody.
//! - Memory follows from these: no step makes more than a string of 1 KiB, the pieces of one, or a copy of a flat
//!   value, and the steps end after `CPU_MAX`. regorus has a limit of its own only with its allocator in the place of
//!   the system's, which is written in C.
//! - Should one step still take long, the caller is answered after [`WALL_MAX`] all the same, and until that step has
//!   ended, the condition refuses everybody at once. So it holds at most four threads, and never the server. Who only
//!   waited for one of them is told to try again.

use std::{sync::Arc, time::Duration};

use regorus::{Engine, Value};

mod builtins;
mod effort;
mod error;
mod failure;
mod input;
mod module;
mod sandbox;
mod shapes;
mod source;

pub use error::ConditionError;
pub use failure::ConditionFailure;
pub use input::{CallerInput, ConditionInput, RequestInput, TimeInput};

use effort::Effort;
use sandbox::{Ended, Slots};

/// The longest source, in bytes.
pub const SOURCE_BYTES_MAX: usize = 32 * 1024;

/// The most CPU time of one evaluation. An ordinary condition takes less than a fiftieth of it.
pub const CPU_MAX: Duration = Duration::from_millis(25);

/// The longest that an evaluation is waited for once it has begun, and before it has. Eighty times `CPU_MAX`: only a machine that is starved, or an engine
/// that does not stop, takes so long.
pub const WALL_MAX: Duration = Duration::from_secs(2);

/// The longest that a compilation is waited for once it has begun, and before it has. What it does is bounded by
/// `effort`, to less than a second.
const COMPILE_WALL_MAX: Duration = Duration::from_secs(10);

/// Steps between two looks at the clock. One costs about 50 ns, a step about 1 µs.
const STEPS_BETWEEN_LOOKS: u32 = 16;

/// The file name in the engine's messages.
const FILE: &str = "condition.rego";

/// What decides.
const RULE: &str = "data.keyfold.allow";

/// A compiled condition: cheap to clone, and shared between threads.
#[derive(Clone)]
pub struct Condition {
    /// Prepared, and cloned for each evaluation: the clones share the syntax tree and the schedule.
    engine: Arc<Engine>,
    slots: Arc<Slots>,
}

impl Condition {
    /// Compiles a Rego v1 module of package `keyfold`.
    ///
    /// # Errors
    /// When it is not one, has no rule `allow` that is true or false, or uses what conditions may not use. The text
    /// names the line. Or when that could not be found out now, which [`ConditionError::is_passing`] tells.
    pub fn compile(rego: &str) -> Result<Self, ConditionError> {
        Self::compile_on(sandbox::compiling(), rego)
    }

    /// [`Self::compile`] of what is already declared: it has threads of its own, so that it does not wait for texts that
    /// somebody tries out.
    ///
    /// # Errors
    /// As [`Self::compile`]. One that is not passing means that the role must not be used; one that is, that it must
    /// not be used until compiling again has said more.
    pub fn compile_stored(rego: &str) -> Result<Self, ConditionError> {
        Self::compile_on(sandbox::compiling_stored(), rego)
    }

    fn compile_on(slots: &Arc<Slots>, rego: &str) -> Result<Self, ConditionError> {
        source::check(rego)?;
        let rego = rego.to_owned();
        let passing = |reason: &str| Err(ConditionError::passing(reason));
        match slots.run(COMPILE_WALL_MAX, move || compile(rego)) {
            Ok(compiled) => Ok(Self { engine: Arc::new(compiled?), slots: Arc::default() }),
            Err(Ended::Full) => passing("too many conditions are being compiled: try again"),
            Err(Ended::Overdue) => passing("another condition is still being compiled: try again later"),
            Err(Ended::NoThread) => passing("the system gave no thread to compile it on: try again later"),
            Err(Ended::TooLong) => passing("compiling it did not end in time: try again later"),
            Err(Ended::Died) => {
                Err(ConditionError::new(None, "the engine failed on it: write it in another way"))
            }
        }
    }

    /// Whether `data.keyfold.allow` is true for this input. Blocks for [`CPU_MAX`], and at the very most for
    /// twice [`WALL_MAX`]: first for its turn.
    ///
    /// # Errors
    /// In every case but that it is exactly `true`. [`ConditionFailure::Busy`] says nothing of the condition, and is to
    /// be tried again.
    pub fn check(&self, input: &ConditionInput) -> Result<(), ConditionFailure> {
        let engine = self.engine.clone();
        let input = input.to_value().map_err(|error| failure::of_engine(&error))?;
        match self.slots.run(WALL_MAX, move || evaluate(Engine::clone(&engine), input)) {
            Ok(decided) => decided,
            Err(Ended::Full | Ended::NoThread) => Err(ConditionFailure::Busy),
            Err(Ended::Overdue | Ended::TooLong) => Err(ConditionFailure::Timeout),
            Err(Ended::Died) => Err(ConditionFailure::Error("the engine failed".to_owned())),
        }
    }
}

fn compile(rego: String) -> Result<Engine, ConditionError> {
    let mut effort = Effort::begin();
    let refused = |error| ConditionError::of_engine(&error);
    let mut engine = Engine::new();
    let package = engine.add_policy(FILE.to_owned(), rego.clone()).map_err(refused)?;
    if package != "data.keyfold" {
        return Err(ConditionError::new(None, "the package must be keyfold: begin with `package keyfold`"));
    }
    effort.look()?;
    let patterns = module::check(&mut engine, &rego, &mut effort)?;
    effort.look()?;
    builtins::install(&mut engine, patterns)?;
    sandbox::limit(&mut engine, CPU_MAX, STEPS_BETWEEN_LOOKS);
    engine.compile_with_entrypoint(&RULE.into()).map_err(refused)?;
    Ok(engine)
}

fn evaluate(mut engine: Engine, input: Value) -> Result<(), ConditionFailure> {
    let start = sandbox::cpu_time();
    engine.set_input(input);
    let value = engine.eval_rule(RULE.to_owned());
    // Looked at before the value: the engine may turn a limit that it met inside a function into another error.
    if builtins::met_string_limit() {
        return Err(ConditionFailure::Memory);
    }
    if sandbox::cpu_time().saturating_sub(start) > CPU_MAX {
        return Err(ConditionFailure::Timeout);
    }
    match value {
        Ok(Value::Bool(true)) => Ok(()),
        Ok(Value::Bool(false) | Value::Undefined) => Err(ConditionFailure::False),
        Ok(_) => Err(ConditionFailure::Error("allow is neither true nor false".to_owned())),
        Err(error) => Err(failure::of_engine(&error)),
    }
}

#[cfg(test)]
mod tests;
