//! Kernels of `qkv_bias`.

use super::Args;

pub(crate) fn qkv_bias(args: &mut Args<'_>) {
    let (inputs, [bias], _) = args.split::<1>();
    let (q, v) = (inputs.f32(0), inputs.f32(1));
    bias[..q.len()].copy_from_slice(q);
    bias[q.len()..2 * q.len()].fill(0.0);
    bias[2 * q.len()..].copy_from_slice(v);
}

pub(crate) fn qkv_bias_grad(args: &mut Args<'_>) {
    let (inputs, [q, v], _) = args.split::<2>();
    let (grad, dim) = (inputs.f32(0), q.len());
    q.iter_mut().zip(&grad[..dim]).for_each(|(a, g)| *a += g);
    v.iter_mut().zip(&grad[2 * dim..]).for_each(|(a, g)| *a += g);
}
