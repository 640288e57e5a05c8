//! `simmim selftest`: whether this machine computes what it should, and how fast. For the first minute on a new card or processor.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

mod operations;
mod throughput;
mod training;

use crate::arguments::SelfTest;
use crate::commands::check_output;
use crate::device::{self, DeviceArguments};
use crate::diagnostics::Failure;
use simmim_engine::Executor;
use simmim_engine::host::Isa;
use std::process::ExitCode;

/// One thing to test: a device, or the processor with one of its instruction sets.
struct Subject<'a> {
    name: String,
    device: &'a DeviceArguments,
    isa: Option<&'static str>,
}

impl Subject<'_> {
    fn open(&self) -> Result<Box<dyn Executor>, Failure> {
        device::open_with(self.device, self.isa)
    }
}

/// What a line of the table says.
enum Verdict {
    Right,
    Wrong,
    /// A figure, which nothing is compared with.
    Measured,
}

/// The table, printed while it grows and written to a file at the end.
#[derive(Default)]
struct Report {
    text: String,
    wrong: usize,
}

impl Report {
    fn say(&mut self, line: &str) {
        println!("{line}");
        self.text.push_str(line);
        self.text.push('\n');
    }

    fn line(&mut self, what: &str, figure: &str, verdict: &Verdict) {
        let word = match verdict {
            Verdict::Right => "right",
            Verdict::Wrong => "WRONG",
            Verdict::Measured => "",
        };
        self.wrong += usize::from(matches!(verdict, Verdict::Wrong));
        self.say(format!("  {what:44} {figure:>24}  {word}").trim_end());
    }

    /// A line for an error that must stay below a limit; not a number is above it.
    fn error(&mut self, what: &str, error: f64, limit: f64) {
        let verdict = if error < limit { Verdict::Right } else { Verdict::Wrong };
        self.line(what, &format!("error {error:.1e}"), &verdict);
    }
}

/// Error by norm: `|a - b| / |b|`, over finite numbers; infinite otherwise.
fn relative_error(found: &[f32], truth: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0f64, 0.0f64);
    for (&a, &b) in found.iter().zip(truth) {
        difference += (f64::from(a) - f64::from(b)).powi(2);
        norm += f64::from(b).powi(2);
    }
    let error = if difference == 0.0 { 0.0 } else { (difference / norm.max(1e-60)).sqrt() };
    if error.is_nan() { f64::INFINITY } else { error }
}

pub(crate) fn run(a: &SelfTest) -> Result<ExitCode, Failure> {
    if let Some(path) = &a.out {
        check_output(path)?;
    }
    if a.device.precision.is_some() {
        return Err(Failure::input("selftest has no precision: it tries what there is", "leave --precision out"));
    }
    let whole = Subject { name: String::new(), device: &a.device, isa: None };
    let machine = whole.open()?.machine();
    let mut report = Report::default();
    report.say(&format!(
        "simmim {} on {} ({}), {} threads",
        env!("CARGO_PKG_VERSION"),
        machine.device,
        machine.isa,
        machine.threads
    ));
    let subjects: Vec<Subject<'_>> = if machine.device == "cpu" {
        let of = |isa: Isa| Subject { name: isa.name().to_owned(), device: &a.device, isa: Some(isa.name()) };
        Isa::available().into_iter().map(of).collect()
    } else {
        vec![Subject { name: machine.device.clone(), ..whole }]
    };
    let reference = Subject {
        name: "portable".into(),
        device: &DeviceArguments::processor(a.device.threads),
        isa: Some("portable"),
    };
    for subject in &subjects {
        report.say(&format!("{}:", subject.name));
        operations::check(subject, &mut report)?;
        training::check(subject, &reference, &mut report)?;
        if !a.quick {
            operations::check_real_shapes(subject, &reference, &mut report)?;
            throughput::measure(subject, &mut report)?;
        }
    }
    report.say(&match report.wrong {
        0 => "everything is right".to_owned(),
        wrong => format!("{wrong} lines are WRONG: please send this table to the maintainers"),
    });
    if let Some(path) = &a.out {
        std::fs::write(path, &report.text).map_err(|e| Failure::running(format!("{}: {e}", path.display())))?;
        println!("the table is in {}", path.display());
    }
    Ok(ExitCode::from(u8::from(report.wrong > 0)))
}
