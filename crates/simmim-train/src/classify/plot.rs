//! The plot of a comparison.

use super::compare::percent;
use super::{Finding, Summary};
use crate::error::TrainError;
use crate::run_folder::atomic_write;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (720, 440);
const PRETRAINED: RGBColor = RGBColor(8, 48, 107);
const SCRATCH: RGBColor = RGBColor(200, 90, 20);

/// Draws accuracy against the share of the labels, with bars of one standard deviation, as SVG.
///
/// # Errors
/// [`TrainError::Io`], [`TrainError::Internal`] for a fault of the drawing.
pub fn draw_comparison(findings: &[Finding], path: &Path) -> Result<(), TrainError> {
    let mut svg = String::new();
    render(findings, &mut svg).map_err(|e| TrainError::Internal { what: format!("the plot: {e}") })?;
    atomic_write(path, svg.as_bytes())
}

fn render(findings: &[Finding], svg: &mut String) -> Result<(), Box<dyn std::error::Error>> {
    let ends = |s: &Summary| [100.0 * (s.mean - s.spread), 100.0 * (s.mean + s.spread)];
    let all = findings.iter().flat_map(|f| ends(&f.pretrained).into_iter().chain(ends(&f.scratch)));
    let (low, high) = all.fold((100.0f64, 0.0f64), |(low, high), v| (low.min(v), high.max(v)));
    let (low, high) = ((low - 2.0).max(0.0), (high + 2.0).min(100.0));
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let last = findings.len() as f64 - 1.0;
    let mut chart = ChartBuilder::on(&root)
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(-0.4..last + 0.4, low..high)?;
    let label = |x: &f64| {
        let near = x.round();
        let finding = findings.get(near as usize).filter(|_| near >= 0.0 && (x - near).abs() < 1e-6);
        finding.map_or_else(String::new, |f| format!("{} ({})", percent(f.share), f.images))
    };
    chart
        .configure_mesh()
        .x_labels(2 * findings.len() + 1)
        .x_label_formatter(&label)
        .x_desc("labelled images")
        .y_desc("validation top-1, %")
        .disable_x_mesh()
        .light_line_style(WHITE)
        .draw()?;
    for (name, color, of) in [
        ("pre-trained", PRETRAINED, (|f: &Finding| f.pretrained) as fn(&Finding) -> Summary),
        ("from scratch", SCRATCH, |f: &Finding| f.scratch),
    ] {
        let points: Vec<(f64, f64)> = (0..).zip(findings).map(|(i, f)| (f64::from(i), 100.0 * of(f).mean)).collect();
        chart
            .draw_series(LineSeries::new(points.clone(), color.stroke_width(2)))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], color.stroke_width(2)));
        chart.draw_series(points.iter().map(|&p| Circle::new(p, 4, color.filled())))?;
        let bars = (0..).zip(findings).map(|(i, f)| {
            let [from, to] = ends(&of(f));
            PathElement::new([(f64::from(i), from), (f64::from(i), to)], color.stroke_width(2))
        });
        chart.draw_series(bars)?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::LowerRight)
        .background_style(WHITE)
        .border_style(BLACK)
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plot_names_both_arms_and_every_share() {
        let summary = |mean| Summary { mean, spread: 0.01 };
        let finding = |share, images| Finding {
            share,
            images,
            seeds: 3,
            pretrained: summary(0.8),
            scratch: summary(0.7),
            difference: 0.1,
            interval: None,
        };
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("plot.svg");
        for findings in [vec![finding(0.01, 600), finding(0.1, 6000), finding(1.0, 60_000)], vec![finding(0.5, 10)]] {
            draw_comparison(&findings, &path).unwrap();
            let svg = std::fs::read_to_string(&path).unwrap();
            for text in ["pre-trained".to_owned(), "from scratch".to_owned()]
                .into_iter()
                .chain(findings.iter().map(|f| format!("({})", f.images)))
            {
                assert!(svg.contains(&text), "{text}");
            }
        }
    }
}
