//! The `simmim` command: a table of modes. What a mode does stands in `commands`.

mod arguments;
mod commands;
mod device;
mod diagnostics;
mod interrupt;
mod meter;
mod npy;
mod parts;
mod progress;
mod ranks;

use arguments::{Arguments, BenchWhat, Command, RecipesAction};
use clap::Parser;
use diagnostics::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    // A reader that has seen enough (`| head`) ends the program quietly, as it does others.
    sigpipe::reset();
    let arguments = Arguments::parse();
    let format = arguments.log_format;
    // An argument goes before the environment.
    let chosen = matches!(&arguments.command, Command::Bench(a) if a.names_isa());
    if let (false, Err(failure)) = (chosen, device::check_environment()) {
        return failure.report(format);
    }
    let result: Result<ExitCode, Failure> = match arguments.command {
        Command::Pretrain(a) => commands::pretrain::run(&a, format),
        Command::Reconstruct(a) => commands::reconstruct::run(&a),
        Command::Data(a) => commands::data::run(&a, format),
        Command::Embed(a) => commands::embed::run(&a, format),
        Command::Probe(a) => commands::probe::run(&a, format),
        Command::Neighbors(a) => commands::neighbors::run(&a, format),
        Command::Finetune(a) => commands::finetune::run(&a, format),
        Command::Evaluate(a) => commands::evaluate::run(&a),
        Command::Predict(a) => commands::predict::run(&a, format),
        Command::Compare(a) => commands::compare::run(&a, format),
        Command::Export(a) => commands::export::run(&a, format),
        Command::Inspect(a) => commands::inspect::run(&a),
        Command::Recipes(a) => match a.action {
            None | Some(RecipesAction::List) => commands::recipes::list(),
            Some(RecipesAction::Show { name }) => commands::recipes::show(&name),
        },
        Command::Selftest(a) => commands::selftest::run(&a),
        Command::Bench(a) => match a.what {
            BenchWhat::Step(a) => commands::bench::step::run(&a),
            BenchWhat::Embed(a) => commands::bench::embed::run(&a),
            BenchWhat::Loader(a) => commands::bench::loader::run(&a, format),
        },
    };
    result.unwrap_or_else(|failure| failure.report(format))
}
