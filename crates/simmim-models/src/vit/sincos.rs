//! Positions as sines and cosines.

/// The two-dimensional table of MAE (He et al., arXiv 2111.06377, official code), `[tokens, dim]`, row by row.
///
/// The first half of a row encodes the column of the patch, the second half its row; each half has `dim / 4` sines, then as many
/// cosines, of the place times `10000^(-4 i / dim)`. With a class token a row of zeros comes first. `dim` is a multiple of 4.
#[must_use]
pub fn sincos_positions(rows: usize, cols: usize, dim: usize, class_token: bool) -> Vec<f32> {
    let quarter = dim / 4;
    let frequency = |i: usize| 10_000_f64.powf(-(i as f64) / quarter as f64);
    let half = |place: usize| {
        let angle = move |i: usize| place as f64 * frequency(i);
        (0..quarter).map(move |i| angle(i).sin() as f32).chain((0..quarter).map(move |i| angle(i).cos() as f32))
    };
    let mut table = vec![0.0; if class_token { dim } else { 0 }];
    for patch in 0..rows * cols {
        table.extend(half(patch % cols).chain(half(patch / cols)));
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ParameterSpec, PositionInit, SimMimConfig, VitConfig};
    use simmim_testing::Fixture;

    /// `fixtures/scripts/make_sincos.py`: keys are `ROWSxCOLS.CLASS_TOKEN`.
    #[test]
    fn tables_are_maes() {
        let fixture = Fixture::load("sincos");
        assert_eq!(fixture.floats.len(), 5);
        for (key, (shape, expected)) in &fixture.floats {
            let (grid, class) = key.split_once('.').unwrap();
            let (rows, cols) = grid.split_once('x').unwrap();
            let table = sincos_positions(rows.parse().unwrap(), cols.parse().unwrap(), shape[1], class == "1");
            assert_eq!(table.len(), expected.len(), "{key}");
            for (found, expected) in table.iter().zip(expected) {
                assert!((found - expected).abs() < 1e-6, "{key}: {found} {expected}");
            }
        }
    }

    #[test]
    fn absolute_positions_start_as_the_table_only_where_that_is_asked_for() {
        let start = |position_init, class_token| {
            let vit = VitConfig::preset("vit_tiny_patch8_32").unwrap();
            let vit = VitConfig { position_init, class_token, ..vit };
            let parameters = SimMimConfig::official(vit, (8, 8), 0.5).parameters();
            let positions = |p: &&ParameterSpec| p.name == "encoder.pos_embed";
            parameters.iter().find(positions).unwrap().initial(3)
        };
        assert_eq!(start(PositionInit::SinCos, true), sincos_positions(4, 4, 192, true));
        assert_eq!(start(PositionInit::SinCos, false), sincos_positions(4, 4, 192, false));
        let normal = start(PositionInit::Normal, true);
        assert!(normal.iter().all(|v| v.abs() <= 0.02) && normal != start(PositionInit::SinCos, true));
    }

    #[test]
    fn widths_that_are_no_multiple_of_four_are_refused() {
        let vit = VitConfig { embed_dim: 6, num_heads: 1, ..VitConfig::preset("vit_tiny_patch8_32").unwrap() };
        vit.validate().unwrap();
        let error = VitConfig { position_init: PositionInit::SinCos, ..vit }.validate().unwrap_err();
        assert!(error.to_string().contains("multiple of 4"), "{error}");
        assert!(error.help().unwrap().contains("model.position_init"));
    }
}
