//! Signals that end a training early, after a checkpoint.

use crate::diagnostics::Failure;
use clap::{Args, ValueEnum};
use simmim_train::{Outcome, Ranks};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Of a training that was asked to stop.
const STOPPED: u8 = 130;
/// Of one that is to be started again: `EX_TEMPFAIL` of sysexits.h.
const REQUEUE: u8 = 75;

/// A signal of batch systems.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequeueSignal {
    /// SIGUSR1.
    #[value(name = "USR1")]
    Usr1,
    /// SIGUSR2.
    #[value(name = "USR2")]
    Usr2,
}

#[derive(Debug, Clone, Copy, Default, Args)]
pub(crate) struct InterruptArguments {
    /// At this signal, write a checkpoint and leave with exit code 75: the batch system is to start the training again, with `--resume`.
    #[arg(long, value_name = "SIGNAL", ignore_case = true)]
    pub(crate) requeue_signal: Option<RequeueSignal>,
}

/// What was asked of this process since it listens.
#[derive(Debug, Clone, Default)]
pub(crate) struct Interrupt {
    stop: Arc<AtomicBool>,
    requeue: Arc<AtomicBool>,
}

impl Interrupt {
    /// Listens to Ctrl-C and the signals that end a process, a second of which ends it at once, and to the one for requeueing.
    pub(crate) fn listen(arguments: InterruptArguments) -> Result<Self, Failure> {
        let heard = Self::default();
        let stop = Arc::clone(&heard.stop);
        // A second handler in one process is the only way to fail; then Ctrl-C ends the process as usual.
        let _ = ctrlc::set_handler(move || {
            if stop.swap(true, Ordering::Relaxed) {
                std::process::exit(STOPPED.into());
            }
        });
        if let Some(signal) = arguments.requeue_signal {
            register(signal, [&heard.requeue, &heard.stop])?;
        }
        Ok(heard)
    }

    /// Is set once the training is to stop.
    pub(crate) fn stop(&self) -> &AtomicBool {
        &self.stop
    }

    /// The exit code for the outcome of a training, the same on all ranks, whichever has heard of it.
    pub(crate) fn code(&self, outcome: Outcome, ranks: &Ranks) -> Result<ExitCode, Failure> {
        let requeue = ranks.any(self.requeue.load(Ordering::Relaxed))?;
        Ok(match outcome {
            Outcome::Finished => ExitCode::SUCCESS,
            Outcome::Stopped => ExitCode::from(if requeue { REQUEUE } else { STOPPED }),
        })
    }
}

#[cfg(unix)]
fn register(signal: RequeueSignal, flags: [&Arc<AtomicBool>; 2]) -> Result<(), Failure> {
    let number = match signal {
        RequeueSignal::Usr1 => signal_hook::consts::SIGUSR1,
        RequeueSignal::Usr2 => signal_hook::consts::SIGUSR2,
    };
    for flag in flags {
        signal_hook::flag::register(number, Arc::clone(flag))
            .map_err(|e| Failure::running(format!("cannot listen to {signal:?}: {e}")))?;
    }
    Ok(())
}

#[cfg(not(unix))]
fn register(_: RequeueSignal, _: [&Arc<AtomicBool>; 2]) -> Result<(), Failure> {
    Err(Failure::input("--requeue-signal: this system has no such signals", "leave it out"))
}
