//! The HTTP API: one file per resource, holding its types, its documentation and its handlers.
//!
//! It takes pushes and answers, and lets callers wait. It never talks to a provider and never publishes: a transaction promises a
//! message, the relay of the process moves it.

mod app;
mod auth;
mod body;
mod device_auth;
mod page;
mod problem;
mod routes;
mod view;

pub use app::{App, BatchLimits, Options, router, serve};
pub use auth::SCOPES;
pub use problem::{CODES, Fault, Problem};
