//! The pages on the real API, by plain HTTP and in a real browser.

#![expect(
    clippy::unwrap_used,
    reason = "the helpers of a test may panic: that is the test failing"
)]

mod bed;
mod browser;
mod phones;
mod pushes;
mod webdriver;
