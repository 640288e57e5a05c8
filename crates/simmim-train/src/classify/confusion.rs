//! The confusion matrix as a table and as a picture.

use super::Scores;
use crate::canvas::{Canvas, LETTER, LINE};
use crate::error::TrainError;
use embedded_graphics::text::Alignment;
use std::path::Path;

/// Most classes of which a picture shows the names and numbers.
const NAMED: usize = 40;
/// Letters of a class name that are shown.
const LETTERS: usize = 24;
/// Side of a cell with a number in it.
const CELL: u32 = 34;
const BLACK: [u8; 3] = [20, 20, 20];
const WHITE: [u8; 3] = [255, 255, 255];

/// CSV: a row a true class, a column a predicted one.
///
/// # Errors
/// [`TrainError::Internal`] only if memory could not be written to.
pub fn confusion_csv(scores: &Scores) -> Result<Vec<u8>, TrainError> {
    let failed = |e: String| TrainError::Internal { what: e };
    let mut out = csv::Writer::from_writer(Vec::new());
    let header = std::iter::once("true \\ predicted").chain(scores.classes().iter().map(String::as_str));
    out.write_record(header).map_err(|e| failed(e.to_string()))?;
    for (class, row) in scores.classes().iter().zip(scores.confusion()) {
        let row = std::iter::once(class.clone()).chain(row.iter().map(u64::to_string));
        out.write_record(row).map_err(|e| failed(e.to_string()))?;
    }
    out.into_inner().map_err(|e| failed(e.to_string()))
}

/// From white over blue to dark.
fn shade(share: f64) -> [u8; 3] {
    let share = share.clamp(0.0, 1.0).sqrt();
    [(247.0, 8.0), (251.0, 48.0), (255.0, 107.0)].map(|(from, to)| (from + (to - from) * share) as u8)
}

/// Black or white, whichever stands out more: their contrasts are equal at a relative luminance of about 0.18 (WCAG 2, "contrast
/// ratio", with sRGB taken as a power of 2.2).
fn text_on(color: [u8; 3]) -> [u8; 3] {
    let linear = color.map(|c| (f64::from(c) / 255.0).powf(2.2));
    let luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
    if luminance > 0.18 { BLACK } else { WHITE }
}

fn shortened(name: &str) -> String {
    if name.chars().count() <= LETTERS {
        name.to_owned()
    } else {
        name.chars().take(LETTERS - 1).chain(['~']).collect()
    }
}

/// Draws the matrix: the colour of a cell is its share of the true class (the row), the number that share in per cent. Beyond 40
/// classes there are no names and numbers.
///
/// # Errors
/// [`TrainError::Io`].
pub fn draw_confusion(scores: &Scores, path: &Path) -> Result<(), TrainError> {
    let n = scores.classes().len() as u32;
    let named = scores.classes().len() <= NAMED;
    let cell = if named { CELL } else { (1600 / n).clamp(1, 16) };
    let names: Vec<String> = scores.classes().iter().map(|c| shortened(c)).collect();
    let longest = names.iter().map(|name| name.chars().count()).max().unwrap_or(0) as u32;
    let margin = if named { longest * LETTER + 12 } else { 8 };
    let (left, top) = (margin + 2 * LINE, margin + 2 * LINE);
    let mut canvas = Canvas::new(left + n * cell + 8, top + n * cell + 8);
    for (row, counts) in (0..).zip(scores.confusion()) {
        let images: u64 = counts.iter().sum();
        for (column, &count) in (0..).zip(counts) {
            let share = if images > 0 { count as f64 / images as f64 } else { 0.0 };
            let (x, y) = (left + column * cell, top + row * cell);
            canvas.fill(x, y, cell.saturating_sub(1).max(1), cell.saturating_sub(1).max(1), shade(share));
            if named && count > 0 {
                let color = text_on(shade(share));
                let text = if share >= 0.9995 { "100".to_owned() } else { format!("{:.1}", 100.0 * share) };
                canvas.text(&text, x + cell / 2, y + cell / 2, Alignment::Center, color);
            }
        }
    }
    if named {
        let mut across = Canvas::new(margin, n * cell);
        for (i, name) in (0..).zip(&names) {
            canvas.text(name, left - 6, top + i * cell + cell / 2, Alignment::Right, BLACK);
            across.text(name, 6, i * cell + cell / 2, Alignment::Left, BLACK);
        }
        // Turned names stand over their columns, the first one at the left.
        canvas.paste(&across.turned(), left, 2 * LINE);
    }
    canvas.text("predicted", left + n * cell / 2, LINE, Alignment::Center, BLACK);
    let mut side = Canvas::new(n * cell, LINE + 4);
    side.text("true", n * cell / 2, LINE / 2 + 1, Alignment::Center, BLACK);
    canvas.paste(&side.turned(), 4, top);
    canvas.save(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(classes: usize) -> Scores {
        let mut scores = Scores::new((0..classes).map(|i| format!("class, {i}")).collect());
        for label in 0..classes {
            for k in 0..4 {
                let logits: Vec<f32> =
                    (0..classes).map(|c| f32::from(u8::from(c == (label + k / 3) % classes))).collect();
                scores.add(label, &logits);
            }
        }
        scores
    }

    #[test]
    fn names_with_commas_stay_in_their_cells() {
        let csv = String::from_utf8(confusion_csv(&scores(3)).unwrap()).unwrap();
        let lines: Vec<&str> = csv.lines().collect();
        assert_eq!(lines[0], "true \\ predicted,\"class, 0\",\"class, 1\",\"class, 2\"");
        assert_eq!(lines[1], "\"class, 0\",3,1,0");
        assert_eq!(lines.len(), 4);
    }

    #[test]
    fn text_stands_out_from_every_shade() {
        assert_eq!((text_on(shade(0.0)), text_on(shade(0.2)), text_on(shade(1.0))), (BLACK, BLACK, WHITE));
        for share in 0..=100 {
            let background = shade(f64::from(share) / 100.0);
            let apart = |text: [u8; 3]| (0..3).map(|i| u32::from(text[i].abs_diff(background[i]))).sum::<u32>();
            assert!(apart(text_on(background)) > 250, "{share} %");
        }
    }

    #[test]
    fn pictures_of_few_and_many_classes_can_be_read_back() {
        let folder = tempfile::tempdir().unwrap();
        for classes in [2, 10, 100] {
            let path = folder.path().join("c.png");
            draw_confusion(&scores(classes), &path).unwrap();
            let picture = image::open(&path).unwrap().to_rgb8();
            assert!(picture.width() == picture.height() && picture.width() > 100);
            assert!(picture.pixels().any(|p| p.0 == shade(0.75)), "{classes} classes");
        }
    }
}
