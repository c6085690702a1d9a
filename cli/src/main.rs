//! Parses, runs, and turns the end into an exit code.

use clap::Parser as _;
use cli::commands::{Arguments, run};
use cli::output::Output;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One TLS provider for every library; it fails only when another one is installed already.
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .ok();
    let output = Output::new(arguments.json);
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            output.error(&format!("the runtime cannot start: {error}"), None);
            return ExitCode::from(1);
        }
    };
    match runtime.block_on(run(arguments, &output)) {
        Ok(exit) => exit.code(),
        Err(failure) => {
            output.error(&failure.what, failure.fix.as_deref());
            failure.exit.code()
        }
    }
}
