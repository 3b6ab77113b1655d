//! `postern serve`: a gateway on this machine, until it is told to stop.

use tokio::signal::unix::{SignalKind, signal};

use super::Failure;
use crate::config::Config;
use crate::decision::plugin::{Compiler, own_program};
use crate::run::{StartError, bind, open_engine, run};

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// Why it could not start.
pub fn serve(mut config: Config) -> Result<(), Failure> {
    config.plugins.compiler = Compiler::Worker(own_program());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("sockets")
        .build()
        .map_err(|error| Failure::Failed(format!("cannot start the socket threads: {error}")))?;
    runtime.block_on(until_stopped(config)).map_err(|error| Failure::Failed(error.to_string()))
}

async fn until_stopped(config: Config) -> Result<(), StartError> {
    let no_signals = |error| StartError::Engine(format!("cannot listen for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let listener = bind(&config).await?;
    let engine = open_engine(&config).await?;
    let shutdown = async {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM"),
            _ = interrupt.recv() => tracing::info!("SIGINT"),
        }
    };
    run(config, listener, engine, shutdown).await
}
