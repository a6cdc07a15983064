//! PKCS#11 modules, loaded once a process each, and the one way to call them: on a thread of its own, one call at a
//! time, and for a limited time. A module that hangs holds that one thread, and whoever comes later learns at the end
//! of their own time that an earlier call has not come back.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock, PoisonError},
    thread,
    time::Duration,
};

use cryptoki::{
    context::{CInitializeArgs, CInitializeFlags, Pkcs11},
    error::{Error, RvError},
};
use tokio::{
    sync::{Mutex, oneshot},
    time::timeout,
};

/// A module, once it is loaded and initialised. `C_Initialize` counts for the whole process, so there is one of each.
type Loaded = Arc<Mutex<Option<Pkcs11>>>;

static MODULES: LazyLock<std::sync::Mutex<HashMap<PathBuf, Loaded>>> = LazyLock::new(Default::default);

/// Why a call gave nothing.
pub(super) struct Failure {
    /// For an operator, with what to do.
    pub(super) reason: String,
    /// Whether the same may work once the module has begun anew: it may have missed that a token was put back.
    may_pass: bool,
}

impl Failure {
    pub(super) fn passing(reason: String) -> Self {
        Self { reason, may_pass: true }
    }

    /// One that must not be tried again by itself.
    pub(super) fn lasting(reason: String) -> Self {
        Self { reason, may_pass: false }
    }

    /// The token's own code, without the paragraph that explains it.
    pub(super) fn of(step: &str, error: &Error) -> Self {
        Self::passing(match error {
            Error::Pkcs11(code, _) => format!("the PKCS#11 token failed to {step} ({code:?})"),
            error => format!("the PKCS#11 module failed to {step}: {error}"),
        })
    }
}

pub(super) struct Module {
    path: PathBuf,
    loaded: Loaded,
}

impl Module {
    pub(super) fn at(path: &Path) -> Self {
        let mut modules = MODULES.lock().unwrap_or_else(PoisonError::into_inner);
        Self { path: path.to_owned(), loaded: Arc::clone(modules.entry(path.to_owned()).or_default()) }
    }

    /// Does `work` with the module. After a failure that may pass, the module begins anew, and `work` is done again.
    pub(super) async fn call<T: Send + 'static>(
        &self,
        limit: Duration,
        work: impl Fn(&Pkcs11) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, String> {
        let path = self.path.clone();
        let done = timeout(limit, async {
            let mut loaded = Arc::clone(&self.loaded).lock_owned().await;
            let (done, wait) = oneshot::channel();
            // No thread of the runtime's pool: that would wait for a module that hangs when the server stops.
            let thread = thread::Builder::new().name("pkcs11".into()).spawn(move || {
                let result = attempt(&path, &mut loaded, work);
                drop(loaded);
                let _ = done.send(result);
            });
            thread.map_err(|error| format!("no thread can be started for the PKCS#11 module: {error}"))?;
            wait.await.map_err(|_| format!("the PKCS#11 module {} broke off", self.path.display()))
        });
        match done.await {
            Ok(result) => result?.map_err(|failure| failure.reason),
            Err(_) => Err(format!(
                "the PKCS#11 module {} did not answer in {} ms: look at the HSM and its connection",
                self.path.display(),
                limit.as_millis()
            )),
        }
    }
}

fn attempt<T>(
    path: &Path,
    loaded: &mut Option<Pkcs11>,
    work: impl Fn(&Pkcs11) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let module = match loaded {
        Some(module) => module,
        None => loaded.insert(load(path)?),
    };
    match work(module) {
        Err(failure) if failure.may_pass => {
            restart(module)?;
            work(module)
        }
        result => result,
    }
}

fn load(path: &Path) -> Result<Pkcs11, Failure> {
    let module = Pkcs11::new(path).map_err(|error| {
        Failure::lasting(format!("the PKCS#11 module {} cannot be loaded: {error}", path.display()))
    })?;
    initialize(&module)?;
    Ok(module)
}

fn initialize(module: &Pkcs11) -> Result<(), Failure> {
    match module.initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK)) {
        Ok(()) | Err(Error::Pkcs11(RvError::CryptokiAlreadyInitialized, _)) => Ok(()),
        Err(error) => Err(Failure::of("begin", &error)),
    }
}

fn restart(module: &Pkcs11) -> Result<(), Failure> {
    // It may not have begun, or not be able to end: what counts is whether it begins.
    let _ = module.clone().finalize();
    initialize(module)
}
