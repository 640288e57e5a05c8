//! What safe code could once get past the engine: constants that do not fit, and rectangles that are held twice.

use proptest::prelude::*;
use simmim_engine::host::{BlockMut, Grid, Pool};
use simmim_engine::ops::{GatherRows, RelativeBias};
use simmim_engine::{EngineError, Graph};

/// Every reader of indices refuses a constant of another length, and one that leads out of bounds.
#[test]
fn constants_that_do_not_fit_are_refused_where_they_are_used() {
    for data in [vec![0; 3], vec![0; 5], vec![], vec![0, 1, 6, 7], vec![0, -1, 2, 3], vec![i32::MIN; 4], vec![6; 4]] {
        let fits = data.len() == 4 && data.iter().all(|i| (0..7).contains(i));
        let mut g = Graph::new();
        let (table, pairs) = (g.state("table", &[7, 2]), g.constant("pairs", &[2, 2], data.clone()));
        let (rows, index) = (g.state("rows", &[7, 2]), g.constant("index", &[4], data.clone()));
        for found in [g.apply1(RelativeBias, &[table, pairs]), g.apply1(GatherRows, &[rows, index])] {
            match found {
                Ok(_) => assert!(fits, "{data:?} was taken"),
                Err(EngineError::Length { expected: 4, found, .. }) => assert_eq!(found, data.len()),
                Err(EngineError::Index { index, bound: 7, .. }) => assert!(data.contains(&index) && data.len() == 4),
                Err(other) => panic!("{data:?}: {other}"),
            }
        }
    }
}

/// Consecutive ranges over `0..len` that end at these places.
fn ranges(len: usize, cuts: &[usize]) -> Vec<std::ops::Range<usize>> {
    let mut ends: Vec<usize> = cuts.iter().map(|cut| cut % (len + 1)).chain([len]).collect();
    ends.sort_unstable();
    ends.iter().scan(0, |from, &to| Some(std::mem::replace(from, to)..to)).collect()
}

proptest! {
    /// Any grid over any matrix: each element belongs to one task, and what lies between the rows to none.
    #[test]
    fn every_element_of_any_grid_is_held_once(
        (rows, cols, gap, threads) in (0usize..9, 0usize..12, 0usize..4, 1usize..4),
        (down, across) in (prop::collection::vec(0usize..20, 0..4), prop::collection::vec(0usize..20, 0..4)),
    ) {
        let stride = cols + gap;
        let grid = Grid { rows: ranges(rows, &down), cols: ranges(cols, &across) };
        let mut data = vec![0u32; rows * stride];
        let none: [BlockMut<'_>; 0] = [];
        let matrix = [BlockMut::of(&mut data, rows, cols, stride)];
        Pool::new(threads).for_blocks(matrix, none, &grid, &mut [], |rows, cols, [mut block], _, _| {
            for (at, row) in rows.enumerate() {
                for (v, col) in block.row(at).iter_mut().zip(cols.clone()) {
                    *v += (1000 + 100 * row + col) as u32;
                }
            }
        });
        for (at, &v) in data.iter().enumerate() {
            let (row, col) = (at / stride, at % stride);
            prop_assert_eq!(v as usize, if col < cols { 1000 + 100 * row + col } else { 0 });
        }
    }
}
