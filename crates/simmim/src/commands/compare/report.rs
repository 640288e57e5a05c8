//! What a comparison found: tables, plot and sentences.

#![allow(clippy::print_stdout, reason = "results go to standard output")]

use crate::arguments::Compare;
use crate::commands::write_file;
use crate::diagnostics::Failure;
use simmim_train::classify::{Arm, ArmResult, Comparison, Finding, Method, Summary, draw_comparison};
use std::path::Path;

/// Writes and prints everything.
pub(super) fn conclude(a: &Compare, out: &Path, comparison: &Comparison) -> Result<(), Failure> {
    let findings = comparison.findings();
    write_file(&out.join("results.csv"), comparison.csv()?.as_ref())?;
    draw_comparison(&findings, &out.join("comparison.svg"))?;
    let sentences: Vec<String> = findings.iter().map(Finding::sentence).chain(comparison.best_ways()).collect();
    let json = serde_json::json!({ "findings": findings, "results": comparison.results, "sentences": sentences,
        "rate_trials": comparison.trials });
    write_file(&out.join("results.json"), format!("{json:#}\n").as_bytes())?;
    if a.json {
        println!("{json}");
        return Ok(());
    }
    table(&findings);
    choices(comparison);
    sentences.iter().for_each(|s| println!("{s}"));
    let out = out.display();
    println!("files: {out}/results.csv, {out}/results.json, {out}/comparison.svg");
    Ok(())
}

fn table(findings: &[Finding]) {
    println!(
        "{:>8}  {:>7}  {:10}  {:>16}  {:>16}  {:14}  {:>10}",
        "labels", "images", "method", "pre-trained", "other", "", "difference"
    );
    for f in findings {
        let cell = |s: Summary| format!("{:.2} +- {:.2}", 100.0 * s.mean, 100.0 * s.spread);
        println!(
            "{:>8}  {:>7}  {:10}  {:>16}  {:>16}  {:14}  {:>+10.2}",
            f.share,
            f.images,
            f.method.name(),
            cell(f.pretrained),
            cell(f.other),
            f.against.title(),
            100.0 * f.difference
        );
    }
    println!("top-1 in percent, mean +- standard deviation over seeds");
}

/// What was selected on held-out training images.
fn choices(comparison: &Comparison) {
    let mut told = Vec::new();
    for t in &comparison.trials {
        if told.contains(&(t.share.to_bits(), t.arm)) {
            continue;
        }
        told.push((t.share.to_bits(), t.arm));
        let tried: Vec<String> = comparison
            .trials
            .iter()
            .filter(|o| (o.share, o.arm) == (t.share, t.arm))
            .map(|o| format!("{:e} {:.1} %", o.lr, 100.0 * o.top1))
            .collect();
        let best = comparison.best_rate(t.share, t.arm).unwrap_or(t.lr);
        println!(
            "learning rate at fraction {}, {}: {best:e}, selected on {} held-out training images at the first seed ({})",
            t.share,
            t.arm.title(),
            t.aside,
            tried.join(", ")
        );
    }
    let probes = |r: &&ArmResult| r.method == Method::Probe && r.arm == Arm::Pretrained;
    for r in comparison.results.iter().filter(probes) {
        let layer = match r.layer {
            Some(k) if k > 0 => format!("block {k}"),
            _ => "norm".to_owned(),
        };
        let l2 = r.l2.unwrap_or_default();
        println!(
            "probe at fraction {}, seed {}: {layer}, l2 {l2:e}, selected on held-out training images",
            r.share, r.seed
        );
    }
}
