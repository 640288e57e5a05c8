//! The curves of a run as a picture (SVG): training loss, held-out loss and the losses of the trivial predictors.

use crate::error::TrainError;
use crate::metrics::Record;
use crate::trivial::TrivialLosses;
use plotters::prelude::*;
use std::path::Path;

const SIZE: (u32, u32) = (900, 520);
/// Most points of a line; longer ones are thinned by means.
const MOST_POINTS: usize = 600;
const TRAIN: RGBColor = RGBColor(120, 160, 210);
const VAL: RGBColor = RGBColor(190, 50, 40);
const MEAN_COLOR: RGBColor = RGBColor(110, 110, 110);
const NEIGHBORS: RGBColor = RGBColor(60, 140, 80);

/// Means of neighbouring points, so that at most `MOST_POINTS` remain.
fn thinned(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let step = points.len().div_ceil(MOST_POINTS).max(1);
    let mean = |part: &[(f64, f64)]| {
        let n = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / n, part.iter().map(|p| p.1).sum::<f64>() / n)
    };
    points.chunks(step).map(mean).collect()
}

/// Draws the curves; nothing where no loss was logged.
///
/// # Errors
/// [`TrainError::Io`].
pub fn draw(path: &Path, records: &[Record], trivial: Option<&TrivialLosses>) -> Result<(), TrainError> {
    let line = |value: fn(&Record) -> Option<f32>| -> Vec<(f64, f64)> {
        let point = |r: &Record| Some((r.step as f64, f64::from(value(r).filter(|v| v.is_finite())?)));
        records.iter().filter_map(point).collect()
    };
    let (train, val) = (thinned(&line(|r| Some(r.loss))), line(|r| r.val_loss));
    if train.is_empty() {
        return Ok(());
    }
    let mut svg = String::new();
    draw_into(&mut svg, &train, &val, trivial)
        .map_err(|e| TrainError::Internal { what: format!("the curves cannot be drawn: {e}") })?;
    simmim_files::write(path, svg.as_bytes()).map_err(TrainError::io(path))
}

type Drawn = Result<(), Box<dyn std::error::Error>>;

fn draw_into(svg: &mut String, train: &[(f64, f64)], val: &[(f64, f64)], trivial: Option<&TrivialLosses>) -> Drawn {
    let flat: Vec<(&str, f64, RGBColor)> = trivial
        .map(|t| {
            vec![
                ("mean colour", f64::from(t.mean_color), MEAN_COLOR),
                ("mean of visible neighbours", f64::from(t.visible_neighbors), NEIGHBORS),
            ]
        })
        .unwrap_or_default();
    let values = || train.iter().chain(val).map(|p| p.1).chain(flat.iter().map(|f| f.1));
    let (low, high) = values().fold((f64::MAX, f64::MIN), |(low, high), v| (low.min(v), high.max(v)));
    let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
    let end = train.iter().chain(val).map(|p| p.0).fold(1.0, f64::max);
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .margin(14)
        .x_label_area_size(36)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..end, (low - room).max(0.0)..high + room)?;
    chart
        .configure_mesh()
        .light_line_style(WHITE)
        .bold_line_style(RGBColor(225, 225, 225))
        .x_desc("step")
        .y_desc("loss")
        .x_label_formatter(&|v| format!("{v:.0}"))
        .draw()?;
    for (name, value, color) in flat {
        let points = [(0.0, value), (end, value)];
        let style = color.stroke_width(2);
        chart
            .draw_series(DashedLineSeries::new(points, 7, 5, style))?
            .label(format!("{name} ({value:.4})"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 22, y)], color.stroke_width(2)));
    }
    chart
        .draw_series(LineSeries::new(train.iter().copied(), TRAIN.stroke_width(1)))?
        .label("training loss")
        .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], TRAIN.stroke_width(1)));
    if let Some(last) = val.last() {
        chart
            .draw_series(LineSeries::new(val.iter().copied(), VAL.stroke_width(2)))?
            .label(format!("held-out loss ({:.4})", last.1))
            .legend(|(x, y)| PathElement::new([(x, y), (x + 22, y)], VAL.stroke_width(2)));
        chart.draw_series(val.iter().map(|&p| Circle::new(p, 3, VAL.filled())))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .background_style(WHITE.mix(0.85))
        .border_style(RGBColor(200, 200, 200))
        .draw()?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_curves_and_both_baselines_are_drawn() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("curves.svg");
        let record = |i: u64| Record {
            step: i + 1,
            loss: if i == 7 { f32::NAN } else { 1.0 / (i + 1) as f32 },
            val_loss: (i % 50 == 49).then_some(0.3),
            ..Record::default()
        };
        let records: Vec<Record> = (0..2000).map(record).collect();
        draw(&path, &records, Some(&TrivialLosses { mean_color: 0.4, visible_neighbors: 0.25 })).unwrap();
        let svg = std::fs::read_to_string(&path).unwrap();
        for text in ["training loss", "held-out loss (0.3000)", "mean colour (0.4000)", "visible neighbours (0.2500)"] {
            assert!(svg.contains(text), "{text}");
        }
        assert_eq!(svg.matches("<circle").count(), 40);
        assert!(svg.len() < 150_000, "{} bytes", svg.len());
        assert!(!svg.contains("NaN"));
        let alone = folder.path().join("alone.svg");
        draw(&alone, &[], None).unwrap();
        assert!(!alone.exists());
        draw(&alone, &records[..1], None).unwrap();
        assert!(alone.exists());
    }
}
