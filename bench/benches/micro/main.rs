//! What the parts of one request cost, each alone and in process, and the limits of the machine that runs them.
//! `docs/performance.md` says what the figures mean.

use divan::Divan;
use keyfold_memory::WipingAllocator;

mod audit_entry;
mod decision;
mod envelope;
mod issuer_keys;
mod limits;
mod message;
mod pod;
mod tls;
mod token_check;
#[path = "../../src/token_stand.rs"]
mod token_stand;

/// The server's own: what is freed is wiped, which is part of what everything costs.
#[global_allocator]
static ALLOCATOR: WipingAllocator = WipingAllocator;

fn main() {
    // Medians that others on the machine disturb little.
    Divan::default().sample_count(1000).config_with_args().main();
}
