//! What a person sees in a browser while Countersign runs on their machine: the phones of a simulated fleet, and the pushes of a store.
//!
//! Pages are rendered here, with one small script beside them that asks again when an event stream says that something changed. Every
//! control is a link or a form, so nothing needs the script. Nothing is fetched from elsewhere: the pages forbid it themselves.
//!
//! Both routers carry their whole paths: merge them, do not nest them. Neither has a log-in; serve them on loopback only. A request under
//! a host name other than `localhost` is refused, so that no page elsewhere can have its name point here.
//!
//! What is asked and answered is shown and never logged.

mod assets;
mod guard;
mod html;
mod live;
mod phone;
mod pushes;
mod words;

pub use phone::phone_router;
pub use pushes::console_router;
