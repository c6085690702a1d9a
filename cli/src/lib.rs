//! The program `countersign`: settings, the roles of a process, and the commands.
//!
//! The roles live here and not in `main`, so that tests start the very same ones.

pub mod client;
pub mod commands;
pub mod dev;
pub mod exit;
pub mod load;
pub mod output;
pub mod roles;
pub mod settings;
mod telemetry;

// A push is some hundred small allocations in several threads.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;
