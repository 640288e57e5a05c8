//! Positions learned on one patch grid, carried over to another.
//!
//! Both kinds are separable: a matrix for each axis says how much of every old place a new one takes.

/// Rows of weights, `[new][old]`.
pub(crate) type Matrix = Vec<Vec<f64>>;

/// The cubic filter of PIL and of torch's antialiased resize (a = -0.5; Keys 1981).
fn cubic(x: f64) -> f64 {
    const A: f64 = -0.5;
    let x = x.abs();
    if x < 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        (((x - 5.0) * x + 8.0) * x - 4.0) * A
    } else {
        0.0
    }
}

/// Antialiased bicubic resize from `old` to `new` places, as `torch.nn.functional.interpolate(mode="bicubic", antialias=True)`,
/// which timm uses for absolute positions.
pub(crate) fn bicubic(old: usize, new: usize) -> Matrix {
    if old == new {
        return identity(old);
    }
    let scale = old as f64 / new as f64;
    let (stretch, support) = (scale.max(1.0), 2.0 * scale.max(1.0));
    let row = |i: usize| {
        let center = scale * (i as f64 + 0.5);
        let first = ((center - support + 0.5).floor().max(0.0)) as usize;
        let last = ((center + support + 0.5).floor().max(0.0) as usize).min(old);
        let mut weights = vec![0.0; old];
        for (j, w) in weights.iter_mut().enumerate().take(last).skip(first) {
            *w = cubic((j as f64 - center + 0.5) / stretch);
        }
        let sum: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= sum);
        weights
    };
    (0..new).map(row).collect()
}

fn identity(len: usize) -> Matrix {
    (0..len).map(|i| (0..len).map(|j| f64::from(u8::from(i == j))).collect()).collect()
}

/// Relative offsets of a grid of `old` patches along an axis (`2 old - 1` of them) carried over to `new` patches as the official
/// code does: the old offsets are moved to a geometric progression that spans the new ones, a cubic spline goes through them, and
/// is read at the new ones; near offsets, which matter most, change least.
pub(crate) fn geometric(old: usize, new: usize) -> Matrix {
    if old == new {
        return identity(2 * old - 1);
    }
    let places = geometric_offsets(old, new);
    let reach = new as f64 - 1.0;
    let at: Vec<f64> = (0..2 * new - 1).map(|i| i as f64 - reach).collect();
    spline(&places, &at)
}

/// Places of the old offsets: `-d, ..., 0, ..., d` with `d_k = 1 + q + ... + q^(k-1)`, and `q` found by bisection in
/// `[1.01, 1.5]` to 1e-6 so that the outermost lies at the outermost new offset.
fn geometric_offsets(old: usize, new: usize) -> Vec<f64> {
    let (terms, reach) = (old as i32 - 1, new as f64 - 1.0);
    let (mut left, mut right, mut q) = (1.01f64, 1.5f64, 1.01f64);
    while right - left > 1e-6 {
        q = f64::midpoint(left, right);
        if (1.0 - q.powi(terms)) / (1.0 - q) > reach {
            right = q;
        } else {
            left = q;
        }
    }
    let outward: Vec<f64> = (1..=terms).map(|k| (0..k).map(|i| q.powi(i)).sum()).collect();
    outward.iter().rev().map(|d| -d).chain([0.0]).chain(outward.iter().copied()).collect()
}

/// Weights of the cubic spline through values at `places` (ascending), read at `at`: the interpolating spline without knots at
/// the second and the last but one place ("not a knot"), which is FITPACK's and so scipy's. Outside it is constant, as there.
/// Three places give a parabola, one a constant.
fn spline(places: &[f64], at: &[f64]) -> Matrix {
    let n = places.len();
    let clamped = at.iter().map(|t| t.clamp(places[0], places[n - 1]));
    match n {
        1 => clamped.map(|_| vec![1.0]).collect(),
        2 | 3 => clamped.map(|t| lagrange(places, t)).collect(),
        _ => {
            let curvature = curvatures(places);
            clamped.map(|t| spline_row(places, &curvature, t)).collect()
        }
    }
}

fn lagrange(places: &[f64], t: f64) -> Vec<f64> {
    let others = |i: usize| places.iter().enumerate().filter(move |(j, _)| *j != i).map(|(_, p)| *p);
    (0..places.len()).map(|i| others(i).map(|p| (t - p) / (places[i] - p)).product()).collect()
}

/// Second derivatives at the places, each as weights of the values: the solution of the spline's equations for unit values.
fn curvatures(x: &[f64]) -> Matrix {
    let n = x.len();
    let h = |i: usize| x[i + 1] - x[i];
    let (mut left, mut right) = (vec![vec![0.0; n]; n], vec![vec![0.0; n]; n]);
    for i in 1..n - 1 {
        (left[i][i - 1], left[i][i], left[i][i + 1]) = (h(i - 1), 2.0 * (h(i - 1) + h(i)), h(i));
        right[i][i - 1] = 6.0 / h(i - 1);
        right[i][i] = -6.0 / h(i - 1) - 6.0 / h(i);
        right[i][i + 1] = 6.0 / h(i);
    }
    (left[0][0], left[0][1], left[0][2]) = (h(1), -h(0) - h(1), h(0));
    let (a, b) = (h(n - 3), h(n - 2));
    (left[n - 1][n - 3], left[n - 1][n - 2], left[n - 1][n - 1]) = (b, -a - b, a);
    solve(left, right)
}

/// Gaussian elimination with row pivoting: `left^-1 right`. The spline's matrix is never singular.
fn solve(mut left: Matrix, mut right: Matrix) -> Matrix {
    let n = left.len();
    for column in 0..n {
        let pivot = (column..n).max_by(|&a, &b| left[a][column].abs().total_cmp(&left[b][column].abs()));
        let pivot = pivot.unwrap_or(column);
        left.swap(column, pivot);
        right.swap(column, pivot);
        let (top, top_right, factor) = (left[column].clone(), right[column].clone(), left[column][column]);
        for row in (0..n).filter(|&r| r != column) {
            let share = left[row][column] / factor;
            if share != 0.0 {
                left[row].iter_mut().zip(&top).for_each(|(v, t)| *v -= share * t);
                right[row].iter_mut().zip(&top_right).for_each(|(v, t)| *v -= share * t);
            }
        }
    }
    for (row, values) in right.iter_mut().enumerate() {
        values.iter_mut().for_each(|v| *v /= left[row][row]);
    }
    right
}

fn spline_row(x: &[f64], curvature: &Matrix, t: f64) -> Vec<f64> {
    let i = x.partition_point(|p| *p <= t).clamp(1, x.len() - 1) - 1;
    let h = x[i + 1] - x[i];
    let (a, b) = ((x[i + 1] - t) / h, (t - x[i]) / h);
    let (c, d) = ((a * a * a - a) * h * h / 6.0, (b * b * b - b) * h * h / 6.0);
    let mut row: Vec<f64> = curvature[i].iter().zip(&curvature[i + 1]).map(|(l, r)| c * l + d * r).collect();
    row[i] += a;
    row[i + 1] += b;
    row
}

/// What turns the kernel of a patch projection for `old` pixels into one for `new`: the pseudo-inverse of the transposed resize, so
/// that a resized image gives the same tokens (Beyer et al., FlexiViT, arXiv 2212.08013, equation 4).
pub(crate) fn flexible(old: usize, new: usize) -> Matrix {
    if old == new {
        return identity(old);
    }
    let resize = bicubic(old, new);
    let transposed: Matrix = (0..old).map(|i| resize.iter().map(|row| row[i]).collect()).collect();
    let product = |a: &Matrix, b: &Matrix| -> Matrix {
        let cell = |row: &[f64], j: usize| row.iter().zip(b).map(|(v, r)| v * r[j]).sum();
        a.iter().map(|row| (0..b[0].len()).map(|j| cell(row, j)).collect()).collect()
    };
    if new < old {
        let gram = product(&resize, &transposed);
        return solve(gram, resize);
    }
    // R (RᵀR)⁻¹ is the transpose of (RᵀR)⁻¹ Rᵀ, whose first factor is symmetric.
    let gram = product(&transposed, &resize);
    let inverse = solve(gram, transposed);
    (0..new).map(|i| inverse.iter().map(|row| row[i]).collect()).collect()
}

/// Applies a matrix to each axis of `[rows, cols, dim]`.
pub(crate) fn apply(down: &Matrix, right: &Matrix, values: &[f32], dim: usize) -> Vec<f32> {
    let cols = right[0].len();
    let mut out = Vec::with_capacity(down.len() * right.len() * dim);
    let chosen = |weights: &[f64]| -> Vec<(usize, f64)> {
        weights.iter().copied().enumerate().filter(|(_, w)| *w != 0.0).collect()
    };
    for rows in down {
        let rows = chosen(rows);
        for columns in right {
            let columns = chosen(columns);
            let mut sum = vec![0.0f64; dim];
            for &(r, wr) in &rows {
                for &(c, wc) in &columns {
                    let place = &values[(r * cols + c) * dim..][..dim];
                    sum.iter_mut().zip(place).for_each(|(s, v)| *s += wr * wc * f64::from(*v));
                }
            }
            out.extend(sum.into_iter().map(|v| v as f32));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spline_reproduces_cubics_and_every_resize_constants() {
        let x = [-3.5, -2.0, -1.0, 0.0, 1.0, 2.0, 3.5];
        let cubic = |t: f64| 0.3 * t * t * t - t * t + 2.0 * t - 1.0;
        let at = [-3.5, -3.1, -0.4, 0.0, 1.7, 3.5];
        for (row, t) in spline(&x, &at).iter().zip(at) {
            let value: f64 = row.iter().zip(x).map(|(w, x)| w * cubic(x)).sum();
            assert!((value - cubic(t)).abs() < 1e-10, "{t}: {value}");
        }
        for (old, new) in [(7, 4), (4, 7), (14, 24), (2, 3), (1, 4), (3, 1)] {
            for row in bicubic(old, new).iter().chain(&geometric(old, new)) {
                assert!((row.iter().sum::<f64>() - 1.0).abs() < 1e-9, "{old} to {new}");
            }
        }
    }

    #[test]
    fn offsets_reach_as_far_as_the_new_grid() {
        let places = geometric_offsets(7, 12);
        assert_eq!(places.len(), 13);
        assert!((places[12] - 11.0).abs() < 1e-3 && places[6] == 0.0 && places[7] == 1.0, "{places:?}");
    }
}
