//! Kernels of `pointwise`.

use super::vector_math::exp;
use super::{Args, rows_per_task};
use crate::host::Cpu;
use crate::host::dispatch::vectorised;
use crate::ops::Function;

pub(crate) fn pointwise(cpu: &Cpu, function: Function, args: &mut Args<'_>) {
    let (inputs, [y], _) = args.split::<1>();
    let (x, len) = (inputs.f32(0), y.len());
    cpu.pool.for_rows([y], len, rows_per_task(4), |range, [y]| {
        let x = &x[range];
        match function {
            Function::Relu => relu(cpu.isa, y, x),
            Function::Sigmoid { scale } => sigmoid(cpu.isa, y, x, scale),
        }
    });
}

pub(crate) fn pointwise_grad(cpu: &Cpu, function: Function, args: &mut Args<'_>) {
    let (inputs, [grad], _) = args.split::<1>();
    let (y, len) = (inputs.f32(1), grad.len());
    cpu.pool.for_rows([grad], len, rows_per_task(4), |range, [grad]| {
        let y = &y[range];
        match function {
            Function::Relu => relu_grad(cpu.isa, grad, y),
            Function::Sigmoid { scale } => sigmoid_grad(cpu.isa, grad, y, scale),
        }
    });
}

vectorised! {
    fn relu<_FMA>(y: &mut [f32], x: &[f32]) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = x.max(0.0));
    }
}

vectorised! {
    fn sigmoid<FMA>(y: &mut [f32], x: &[f32], scale: f32) {
        y.iter_mut().zip(x).for_each(|(y, x)| *y = scale / (1.0 + exp::<FMA>(-x)));
    }
}

vectorised! {
    fn relu_grad<_FMA>(grad: &mut [f32], y: &[f32]) {
        grad.iter_mut().zip(y).for_each(|(g, y)| *g = if *y > 0.0 { *g } else { 0.0 });
    }
}

vectorised! {
    fn sigmoid_grad<_FMA>(grad: &mut [f32], y: &[f32], scale: f32) {
        grad.iter_mut().zip(y).for_each(|(g, y)| *g *= y * (1.0 - y / scale));
    }
}
