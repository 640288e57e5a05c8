//! The plot of a comparison.

use super::compare::percent;
use super::{Arm, Finding, Method, Summary};
use crate::error::TrainError;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (720, 440);
/// Distance between the curves at one share: the shares are 1 apart.
const SHIFT: f64 = 0.07;

/// One curve.
struct Series {
    name: String,
    color: RGBColor,
    /// Probes are thin, trainings thick.
    width: u32,
    /// Place of a share among the findings' shares, with the accuracy there.
    points: Vec<(usize, Summary)>,
}

/// Draws accuracy against the share of the labels, with bars of one standard deviation, as SVG. Curves stand side by side, so that
/// no bar hides another.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Internal`] for a fault of the drawing.
pub fn draw_comparison(findings: &[Finding], path: &Path) -> Result<(), TrainError> {
    let mut svg = String::new();
    render(findings, &mut svg).map_err(|e| TrainError::Internal { what: format!("the plot: {e}") })?;
    simmim_files::write(path, svg.as_bytes()).map_err(TrainError::io(path))
}

/// The shares, ascending, with their images.
fn shares(findings: &[Finding]) -> Vec<(f64, usize)> {
    let mut shares: Vec<(f64, usize)> = findings.iter().map(|f| (f.share, f.images)).collect();
    shares.dedup();
    shares
}

fn all_series(findings: &[Finding], shares: &[(f64, usize)]) -> Vec<Series> {
    let mut all = Vec::new();
    for (method, arm, color) in [
        (Method::Finetune, Arm::Pretrained, RGBColor(8, 48, 107)),
        (Method::Finetune, Arm::Scratch, RGBColor(200, 90, 20)),
        (Method::Probe, Arm::Pretrained, RGBColor(66, 146, 198)),
        (Method::Probe, Arm::Pixels, RGBColor(120, 120, 120)),
        (Method::Probe, Arm::Random, RGBColor(233, 150, 170)),
    ] {
        let at = |(place, (share, _)): (usize, &(f64, usize))| {
            let mut here = findings.iter().filter(|f| f.share == *share && f.method == method);
            let summary = match arm {
                // Every finding of a method holds the accuracy of the weights.
                Arm::Pretrained => here.next().map(|f| f.pretrained),
                _ => here.find(|f| f.against == arm).map(|f| f.other),
            };
            summary.map(|summary| (place, summary))
        };
        let points: Vec<(usize, Summary)> = shares.iter().enumerate().filter_map(at).collect();
        let (name, width) = match method {
            Method::Finetune => (arm.title().to_owned(), 3),
            Method::Probe => (format!("{}, probed", arm.title()), 1),
        };
        if !points.is_empty() {
            all.push(Series { name, color, width, points });
        }
    }
    all
}

/// Where a curve's points stand: the places of the shares, moved aside by the curve's number.
fn shifted(place: usize, series: usize, count: usize) -> f64 {
    place as f64 + SHIFT * (series as f64 - (count as f64 - 1.0) / 2.0)
}

fn render(findings: &[Finding], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let ends = |s: &Summary| [100.0 * (s.mean - s.spread), 100.0 * (s.mean + s.spread)];
    let shares = shares(findings);
    let all = all_series(findings, &shares);
    let values = all.iter().flat_map(|s| s.points.iter().flat_map(|(_, summary)| ends(summary)));
    let (low, high) = values.fold((100.0f64, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = ((low - 2.0).max(0.0), (high + 2.0).min(100.0));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let last = shares.len() as f64 - 1.0;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.4..last + 0.4, low..high)?;
    let label = |x: &f64| {
        let near = x.round();
        let share = shares.get(near as usize).filter(|_| near >= 0.0 && (x - near).abs() < 1e-6);
        share.map_or_else(String::new, |(share, images)| format!("{} ({images})", percent(*share)))
    };
    chart
        .configure_mesh()
        .x_labels(2 * shares.len() + 1)
        .x_label_formatter(&label)
        .x_desc("labelled images")
        .y_desc("validation top-1, %")
        .disable_x_mesh()
        .light_line_style(WHITE)
        .draw()?;
    for (number, series) in all.iter().enumerate() {
        let style = series.color.stroke_width(series.width);
        let x = |place: usize| shifted(place, number, all.len());
        let points: Vec<(f64, f64)> = series.points.iter().map(|(i, s)| (x(*i), 100.0 * s.mean)).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), style))?
            .label(series.name.as_str())
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 4, series.color.filled())))?;
        let bars = series.points.iter().map(|(i, s)| {
            let [from, to] = ends(s);
            PathElement::new([(x(*i), from), (x(*i), to)], series.color.stroke_width(2))
        });
        chart.draw_series(bars)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(share: f64, images: usize, method: Method, against: Arm) -> Finding {
        let summary = |mean| Summary { mean, spread: 0.01 };
        let (pretrained, other) = (summary(0.8), summary(0.7));
        Finding { share, images, method, against, seeds: 3, pretrained, other, difference: 0.1, interval: None }
    }

    #[test]
    fn the_plot_names_every_arm_and_every_share() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        let both = |share, images| {
            [(Method::Finetune, Arm::Scratch), (Method::Probe, Arm::Random), (Method::Probe, Arm::Pixels)]
                .map(|(method, arm)| finding(share, images, method, arm))
        };
        let many = [both(0.01, 600), both(0.1, 6000), both(1.0, 60_000)].concat();
        for (findings, names) in [
            (many, &["pre-trained", "from scratch", "pre-trained, probed", "random weights, probed"][..]),
            (vec![finding(0.5, 10, Method::Finetune, Arm::Scratch)], &["pre-trained", "from scratch"]),
        ] {
            draw_comparison(&findings, &path).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            for text in names.iter().map(|&n| n.to_owned()).chain(findings.iter().map(|f| format!("({})", f.images))) {
                assert!(svg.contains(&text), "{text}");
            }
        }
    }

    #[test]
    fn bars_of_different_arms_stand_side_by_side() {
        let findings = [
            finding(0.01, 600, Method::Finetune, Arm::Scratch),
            finding(0.01, 600, Method::Probe, Arm::Pixels),
            finding(0.1, 6000, Method::Finetune, Arm::Scratch),
        ];
        let shares = shares(&findings);
        assert_eq!(shares, [(0.01, 600), (0.1, 6000)]);
        let all = all_series(&findings, &shares);
        let places = |n: usize| all[n].points.iter().map(|(i, _)| shifted(*i, n, all.len())).collect::<Vec<_>>();
        assert_eq!((places(0).len(), places(2).len()), (2, 1));
        let mut first: Vec<f64> = (0..all.len()).map(|n| places(n)[0]).collect();
        assert!(first.windows(2).all(|w| w[1] - w[0] > 0.05), "{first:?}");
        first.iter_mut().for_each(|x| *x = x.abs());
        assert!(first.iter().all(|x| *x < 0.4), "beyond the plot: {first:?}");
    }
}
