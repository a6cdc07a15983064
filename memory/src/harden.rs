//! What a process gives up for good when it starts.

use rustix::{
    io,
    process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit},
    thread::set_no_new_privs,
};

/// From here on no core is written of this process, nobody but root reads its memory or traces it (prctl(2),
/// `PR_SET_DUMPABLE`), and no program that it starts gains rights (`PR_SET_NO_NEW_PRIVS`). To be called before there
/// are threads: the last counts for the calling thread and those that it starts.
///
/// The limit alone would not do: Linux ignores it where cores are piped to a program (core(5)).
///
/// # Errors
/// Says what the system refused. A process that holds secrets should not go on then.
pub fn harden() -> Result<(), String> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |error: io::Errno| format!("{what}: {error}")
    };
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(refused("core dumps cannot be switched off"))?;
    setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })
        .map_err(refused("the limit of core dumps cannot be set to 0"))?;
    set_no_new_privs(true).map_err(refused("new privileges cannot be given up"))
}
