use super::super::Pool;
use super::*;
use crate::graph::{Bf16, Number};
use simmim_random::{Purpose, Stream};

struct Case<O> {
    e: Extents,
    a: Vec<O>,
    b: Vec<O>,
    c: Vec<f32>,
    bias: Vec<f32>,
    flipped: (bool, bool),
}

impl<O: Operand + Number> Case<O> {
    fn new(e: Extents, flipped: (bool, bool), seed: u64) -> Self {
        let mut stream = Stream::new(seed, Purpose::Test, 0, 0);
        let mut draw = |len: usize| (0..len).map(|_| stream.normal() as f32).collect::<Vec<f32>>();
        let round = |floats: Vec<f32>| floats.into_iter().map(O::nearest).collect::<Vec<O>>();
        // Rows are two floats longer than needed, so that strides and extents differ.
        let pad = |rows: usize, cols: usize, flip: bool| if flip { (rows + 2) * cols } else { rows * (cols + 2) };
        let a = round(draw(pad(e.m, e.k, flipped.0)));
        Self { e, a, b: round(draw(pad(e.k, e.n, flipped.1))), c: draw(e.m * (e.n + 3)), bias: draw(e.n), flipped }
    }

    fn view(data: &[O], rows: usize, cols: usize, flip: bool) -> MatrixView<'_, O> {
        if flip { MatrixView::rows(data, rows + 2).transposed() } else { MatrixView::rows(data, cols + 2) }
    }

    fn product(&self, alpha: f32, accumulate: bool, bias: bool) -> Product<'_, O> {
        let Extents { m, n, k } = self.e;
        let (a, b) = (Self::view(&self.a, m, k, self.flipped.0), Self::view(&self.b, k, n, self.flipped.1));
        Product::new(self.e, a, b).scaled(alpha).accumulated(accumulate).with_bias(bias.then_some(&self.bias))
    }

    /// The plain product in double precision, for contiguous rows of the result.
    fn reference(&self, p: &Product<'_, O>, before: &[f32]) -> Vec<f32> {
        let Extents { m, n, k } = self.e;
        let at =
            |v: MatrixView<'_, O>, i: usize, j: usize| f64::from(v.data[i * v.row_stride + j * v.col_stride].value());
        let mut out = Vec::new();
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|t| at(p.a, i, t) * at(p.b, t, j)).sum();
                let held = if p.accumulate { f64::from(before[i * n + j]) } else { 0.0 };
                out.push((f64::from(p.alpha) * sum + held + p.bias.map_or(0.0, |b| f64::from(b[j]))) as f32);
            }
        }
        out
    }
}

fn assert_close(found: &[f32], truth: &[f32], what: &str) {
    for (at, (a, b)) in found.iter().zip(truth).enumerate() {
        assert!((a - b).abs() <= 2e-4 * (1.0 + b.abs()), "{what}: element {at} is {a}, expected {b}");
    }
}

const EXTENTS: [(usize, usize, usize); 21] = [
    (1, 1, 1),
    (1, 33, 7),
    (5, 1, 64),
    (14, 32, 8),
    (15, 31, 9),
    (13, 17, 0),
    (49, 49, 64),
    (49, 64, 49),
    (6, 16, 513),
    (28, 65, 1030),
    (171, 48, 20),
    (340, 15, 3),
    (97, 130, 77),
    (2, 200, 600),
    (700, 40, 1024),
    (33, 150, 49),
    (1, 64, 64),
    (47, 70, 65),
    (65, 1100, 70),
    (130, 96, 1100),
    (33, 70, 3300),
];

#[test]
fn both_forms_agree_with_the_plain_product_on_every_instruction_set() {
    both_forms_agree::<f32>();
}

#[test]
fn products_of_bfloat16_agree_with_the_plain_product_on_every_instruction_set() {
    both_forms_agree::<Bf16>();
}

fn both_forms_agree<O: Operand + Number>() {
    for (seed, (m, n, k)) in EXTENTS.into_iter().enumerate() {
        for variant in 0..8 {
            let flipped = (variant & 1 == 1, variant & 2 == 2);
            let case = Case::<O>::new(Extents { m, n, k }, flipped, seed as u64);
            let mut p = case.product([1.0, -0.7][variant / 4], variant % 3 == 1, variant % 2 == 0);
            if !flipped.0 && k % 2 == 1 && variant & 4 == 4 {
                p = p.with_padded_rows();
            }
            let truth = case.reference(&p, &case.c[..m * n]);
            for isa in Isa::available() {
                check(&case, p, &truth, isa, &format!("{m}x{n}x{k} variant {variant} on {}", isa.name()));
            }
        }
    }
}

/// One product on an instruction set: on one thread, over the pool, and seen by its epilogue alone.
fn check<O: Operand + Number>(case: &Case<O>, p: Product<'_, O>, truth: &[f32], isa: Isa, what: &str) {
    let Extents { m, n, .. } = case.e;
    let before = &case.c[..m * n];
    let mut apart = vec![7.0; m * (n + 3)];
    for (row, before) in apart.chunks_exact_mut(n + 3).zip(before.chunks_exact(n)) {
        row[..n].copy_from_slice(before);
    }
    multiply(isa, &mut apart, n + 3, p, &mut vec![f32::NAN; multiply_scratch::<O>(isa, case.e)]);
    let rows: Vec<f32> = apart.chunks_exact(n + 3).flat_map(|row| row[..n].to_vec()).collect();
    assert_close(&rows, truth, what);
    assert!(apart.chunks_exact(n + 3).all(|row| row[n..] == [7.0; 3]), "{what} wrote between rows");
    let mut first: Option<[Vec<f32>; 2]> = None;
    for threads in [1, 3] {
        let cpu = Cpu { pool: Pool::new(threads), isa };
        let (mut c, mut doubled) = (before.to_vec(), vec![0.0; m * n]);
        let mut scratch = vec![f32::NAN; product_scratch::<O>(&cpu, case.e)];
        product(&cpu, [&mut c], [&mut doubled], p, &mut scratch, |place, values, [doubled]| {
            for (row, i) in place.rows.clone().enumerate() {
                for (col, j) in place.cols.clone().enumerate() {
                    doubled.row(i)[j] += 2.0 * values.row(row)[col] + (place.first.1 + j) as f32;
                }
            }
        });
        if tiles(isa, case.e).is_some() {
            assert_close(&c, truth, what);
        } else {
            assert!(c == rows, "{what}: the pool's product differs with {threads} threads");
        }
        let once = c.iter().zip(&doubled).enumerate().all(|(i, (c, d))| 2.0 * c + (i % n) as f32 == *d);
        assert!(once, "{what}: parts are not finished once");
        let seen = if p.accumulate || O::IN_WORD == 1 { c.clone() } else { seen(&cpu, p, &mut scratch) };
        assert_close(&seen, truth, what);
        let both = first.get_or_insert([c.clone(), seen.clone()]);
        assert!(*both == [c, seen], "{what}: the product differs with {threads} threads");
    }
}

/// The values that the epilogue is given where the product is written nowhere else.
fn seen<O: Operand>(cpu: &Cpu, p: Product<'_, O>, scratch: &mut [f32]) -> Vec<f32> {
    let mut seen = vec![0.0; p.extents.m * p.extents.n];
    product(cpu, [], [&mut seen], p, scratch, |place, values, [seen]| {
        for (row, i) in place.rows.clone().enumerate() {
            seen.row(i)[place.cols.clone()].copy_from_slice(values.row(row));
        }
    });
    seen
}

/// As the processor's instruction does it: exact products, rounded once each as they are added; subnormal operands count as zero
/// there, so that the sum differs by less than the smallest normal number.
#[test]
fn subnormal_numbers_and_infinities_of_bfloat16_do_no_harm() {
    let tiny = f32::from_bits(0x0001_0000);
    for isa in Isa::available() {
        for (a, b, expected) in
            [(tiny, 1.0, 0.0), (tiny, tiny, 0.0), (f32::INFINITY, 2.0, f32::INFINITY), (3.0, -0.5, -1.5)]
        {
            let (a, b) = (vec![Bf16::nearest(a); 4], vec![Bf16::nearest(b); 4]);
            let e = Extents { m: 1, n: 1, k: 4 };
            let mut c = [0.0];
            let p = Product::new(e, MatrixView::rows(&a, 4), MatrixView::rows(&b, 1));
            multiply(isa, &mut c, 1, p, &mut vec![0.0; multiply_scratch::<Bf16>(isa, e)]);
            let expected = 4.0 * expected;
            let close = c[0] == expected || (c[0] - expected).abs() < f32::MIN_POSITIVE;
            assert!(close, "{} on {}: expected {expected}", c[0], isa.name());
        }
    }
}

#[test]
#[should_panic(expected = "operand too short")]
fn a_view_that_is_too_short_is_refused() {
    let e = Extents { m: 2, n: 2, k: 2 };
    let p = Product::new(e, MatrixView::rows(&[0.0; 3], 2), MatrixView::rows(&[0.0; 4], 2));
    multiply(Isa::detect(), &mut [0.0; 4], 2, p, &mut vec![0.0; multiply_scratch::<f32>(Isa::detect(), e)]);
}

#[test]
#[should_panic(expected = "result too short")]
fn a_result_that_is_too_short_is_refused() {
    let e = Extents { m: 2, n: 2, k: 2 };
    let p = Product::new(e, MatrixView::rows(&[0.0; 4], 2), MatrixView::rows(&[0.0; 4], 2));
    multiply(Isa::detect(), &mut [0.0; 3], 2, p, &mut vec![0.0; multiply_scratch::<f32>(Isa::detect(), e)]);
}
