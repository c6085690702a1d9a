//! The console and the phone page.
