//! Where conditions run: on threads of their own, a few at a time, for so long.

use std::{
    sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, Once, PoisonError, mpsc},
    thread,
    time::Duration,
};

use regorus::{
    Engine,
    utils::limits::{ExecutionTimerConfig, TimeSource, set_time_source},
};
use rustix::time::{ClockId, clock_gettime};

/// Threads at once, of one condition.
pub(super) const THREADS_MAX: usize = 4;

/// Stack of a thread. The deepest condition that is accepted takes between 2 and 6 MiB in a debug build. Memory is only
/// what is touched.
const STACK_BYTES: usize = 32 * 1024 * 1024;

/// Why work gave no result.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was not begun: all places were taken for as long as it was to wait.
    Full,
    /// It was not begun: the system gave no thread.
    NoThread,
    /// It was not begun: other work still runs that was given up.
    Overdue,
    /// It was given up, and still runs.
    TooLong,
    /// It panicked.
    Died,
}

/// Room for a few threads at once.
#[derive(Default)]
pub(super) struct Slots {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    running: usize,
    /// Whether work was given up that still runs.
    overdue: bool,
}

/// One thread's place, until it ends.
struct Slot(Arc<Slots>);

/// Those of compilations that somebody asks for.
pub(super) fn compiling() -> &'static Arc<Slots> {
    static COMPILING: LazyLock<Arc<Slots>> = LazyLock::new(Arc::default);
    &COMPILING
}

/// Those of compilations of what is stored, which must not wait for what somebody tries out.
pub(super) fn compiling_stored() -> &'static Arc<Slots> {
    static COMPILING: LazyLock<Arc<Slots>> = LazyLock::new(Arc::default);
    &COMPILING
}

impl Slots {
    /// Runs `work` on a thread, and waits for it so long, after it waited at most as long for a place. While work that was
    /// given up still runs, no more is begun.
    pub(super) fn run<T: Send + 'static>(
        self: &Arc<Self>,
        wall_max: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Ended> {
        let slot = self.slot(wall_max)?;
        let (sender, result) = mpsc::sync_channel(1);
        let thread = thread::Builder::new().name("condition".to_owned()).stack_size(STACK_BYTES);
        let run = move || {
            let _slot = slot;
            // Nobody takes it when the work was given up.
            let _ = sender.send(work());
        };
        thread.spawn(run).map_err(|_| Ended::NoThread)?;
        match result.recv_timeout(wall_max) {
            Ok(value) => Ok(value),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(Ended::Died),
            Err(mpsc::RecvTimeoutError::Timeout) => {
                let mut state = self.state();
                state.overdue = state.running > 0;
                Err(Ended::TooLong)
            }
        }
    }

    fn slot(self: &Arc<Self>, wall_max: Duration) -> Result<Slot, Ended> {
        let full = |state: &mut State| state.running >= THREADS_MAX && !state.overdue;
        let waited = self.freed.wait_timeout_while(self.state(), wall_max, full);
        let (mut state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        if state.overdue {
            return Err(Ended::Overdue);
        }
        if state.running >= THREADS_MAX {
            return Err(Ended::Full);
        }
        state.running += 1;
        Ok(Slot(self.clone()))
    }

    /// Nothing that holds the lock can panic, so a poisoned one is whole.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.running -= 1;
        state.overdue &= state.running > 0;
        self.0.freed.notify_all();
    }
}

/// CPU time of this thread.
pub(super) fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        u64::try_from(time.tv_sec).unwrap_or_default(),
        u32::try_from(time.tv_nsec).unwrap_or_default(),
    )
}

struct ThreadCpuClock;

impl TimeSource for ThreadCpuClock {
    fn now(&self) -> Option<Duration> {
        Some(cpu_time())
    }
}

/// Has the engine end an evaluation that takes more than this much CPU time.
pub(super) fn limit(engine: &mut Engine, cpu_max: Duration, steps_between_looks: u32) {
    static CLOCK: Once = Once::new();
    // The engine refuses a second clock, and nothing else gives it one.
    CLOCK.call_once(|| {
        let _ = set_time_source(&ThreadCpuClock);
    });
    let check_interval = steps_between_looks.try_into().unwrap_or(std::num::NonZeroU32::MIN);
    engine.set_execution_timer_config(ExecutionTimerConfig { limit: cpu_max, check_interval });
}
