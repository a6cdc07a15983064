//! Slots for keys in memory that is never swapped and in no dump.

#![allow(
    unsafe_code,
    reason = "mmap(2), mprotect(2), madvise(2) and mlock(2) take addresses; one function calls them"
)]

use std::{
    ptr, slice,
    sync::{Mutex, MutexGuard, PoisonError},
};

use keyfold_core::secret::{Key, KeyMaterial};
use rustix::{
    io,
    mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mlock, mmap_anonymous, mprotect, munmap},
    param::page_size,
    process::{Resource, getrlimit},
};
use zeroize::Zeroize;

/// Bytes locked at a time, 512 keys: the first must fit where only 64 KiB may be locked, Linux' default before 5.16 and
/// still that of some container runtimes.
const CHUNK_BYTES: usize = 16 * 1024;

type Slot = &'static mut [u8; Key::LEN_BYTES];

/// All free slots of the process. Chunks are never given back: keys come and go, and the room for them stays.
static ARENA: Mutex<Arena> = Mutex::new(Arena { free: Vec::new(), exhausted: false });

struct Arena {
    free: Vec<Slot>,
    /// Whether the system refused to lock more, so that it is not asked for each key again.
    exhausted: bool,
}

/// A 256-bit key in locked memory: not swapped, in no core dump, empty in a child after fork(2), between pages that
/// nobody may touch. Moving it moves no key bytes; wiped on drop.
///
/// It cannot be printed, cloned or serialised:
///
/// ```compile_fail
/// # use keyfold_core::secret::Key;
/// let key = keyfold_memory::LockedKey::lock(Key::from_bytes(&[7; 32])).ok().unwrap();
/// let shown = format!("{key:?}");
/// ```
/// ```compile_fail
/// # use keyfold_core::secret::Key;
/// let key = keyfold_memory::LockedKey::lock(Key::from_bytes(&[7; 32])).ok().unwrap();
/// let copy = key.clone();
/// ```
/// It can be read where the reader says so:
///
/// ```
/// use keyfold_core::secret::{Key, KeyMaterial as _};
/// let key = keyfold_memory::LockedKey::lock(Key::from_bytes(&[7; 32])).ok().unwrap();
/// let bytes: &[u8; 32] = key.expose();
/// ```
pub struct LockedKey {
    /// There until it is dropped.
    slot: Option<Slot>,
}

impl LockedKey {
    /// Moves a key into locked memory; where it came from is wiped. Gives it back when no more memory can be locked.
    ///
    /// # Errors
    /// The key itself: use it once and drop it, but do not keep it.
    pub fn lock(key: Key) -> Result<Self, Key> {
        match arena().slot() {
            Ok(slot) => {
                slot.copy_from_slice(key.expose());
                Ok(Self { slot: Some(slot) })
            }
            Err(_) => Err(key),
        }
    }
}

impl KeyMaterial for LockedKey {
    fn expose(&self) -> &[u8; Key::LEN_BYTES] {
        self.slot.as_deref().expect("the slot is there until the key is dropped")
    }
}

impl Drop for LockedKey {
    fn drop(&mut self) {
        if let Some(slot) = self.slot.take() {
            slot.zeroize();
            arena().free.push(slot);
        }
    }
}

/// Locks room for the first keys, so that a process that may lock none finds out before it serves.
///
/// # Errors
/// Names the limit, and what to do about it.
pub fn reserve() -> Result<(), NotLocked> {
    let slot = arena().slot()?;
    arena().free.push(slot);
    Ok(())
}

/// The system does not let this process lock memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotLocked(io::Errno);

impl std::error::Error for NotLocked {}

impl std::fmt::Display for NotLocked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let limit = getrlimit(Resource::Memlock).current;
        let limit = limit.map_or("unlimited".to_owned(), |bytes| format!("{bytes} bytes"));
        write!(
            f,
            "memory for keys cannot be locked ({}). RLIMIT_MEMLOCK of this process is {limit}; it needs {CHUNK_BYTES} \
             bytes or more: raise it (LimitMEMLOCK= in the unit of the service or of the container runtime, --ulimit \
             memlock=), or give the process CAP_IPC_LOCK",
            self.0
        )
    }
}

fn arena() -> MutexGuard<'static, Arena> {
    ARENA.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Arena {
    fn slot(&mut self) -> Result<Slot, NotLocked> {
        if self.free.is_empty() && !self.exhausted {
            let chunk = locked_chunk().inspect_err(|_| self.exhausted = true).map_err(NotLocked)?;
            self.free.extend(chunk.as_chunks_mut().0);
        }
        self.free.pop().ok_or(NotLocked(io::Errno::NOMEM))
    }
}

/// Zeroed pages for keys, with one page that faults before and one after them.
fn locked_chunk() -> io::Result<&'static mut [u8]> {
    let (page, len) = (page_size(), CHUNK_BYTES.next_multiple_of(page_size()));
    let whole = len + 2 * page;
    // SAFETY: a new private mapping, where the kernel chooses: no memory that anybody refers to.
    let base = unsafe { mmap_anonymous(ptr::null_mut(), whole, ProtFlags::empty(), MapFlags::PRIVATE) }?;
    let data = base.wrapping_byte_add(page);
    // SAFETY: `data` and the `len` bytes after it are whole pages of the mapping above, which nobody else knows of.
    let prepared = unsafe {
        mprotect(data, len, MprotectFlags::READ | MprotectFlags::WRITE)
            .and_then(|()| madvise(data, len, Advice::LinuxDontDump))
            .and_then(|()| madvise(data, len, Advice::LinuxWipeOnFork))
            .and_then(|()| mlock(data, len))
    };
    if let Err(error) = prepared {
        // SAFETY: the mapping above, whole, which nothing refers to. That it cannot be unmapped does no harm.
        let _ = unsafe { munmap(base, whole) };
        return Err(error);
    }
    // SAFETY: readable, writable, zeroed and never unmapped; nothing else refers to it, so the slice is the only way in.
    Ok(unsafe { slice::from_raw_parts_mut(data.cast(), len) })
}

#[cfg(test)]
mod tests;
