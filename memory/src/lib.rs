//! How a process that holds secrets keeps them out of reach of swap, of core dumps, of other processes, and of its own
//! later allocations. The only crate with unsafe code; each use says why it is sound.

mod arena;
mod harden;
mod wiping_allocator;

pub use arena::{LockedKey, NotLocked, reserve};
pub use harden::harden;
pub use wiping_allocator::{WipingAllocator, keep_little_free_memory};
