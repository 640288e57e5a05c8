//! Kernel of `adamw`.

use super::cast::convert;
use super::{Args, rows_per_task};
use crate::graph::Bf16;
use crate::host::Cpu;
use crate::host::dispatch::{madd, vectorised};
use crate::ops::AdamW;

pub(crate) fn adamw(cpu: &Cpu, op: &AdamW, args: &mut Args<'_>) {
    let (inputs, mut outputs, _) = args.parts();
    let [param, grad, m, v] = std::array::from_fn(|_| outputs.take::<f32>());
    let copy = if op.copy { outputs.take::<Bf16>() } else { &mut [] };
    let part = op.start..op.start + m.len();
    let copy = if op.copy { &mut copy[part.clone()] } else { copy };
    let (param, grad) = (&mut param[part.clone()], &mut grad[part]);
    let (step, clip) = (inputs.f32(4), inputs.f32(5)[0]);
    if !clip.is_finite() {
        grad.fill(0.0);
        return;
    }
    let lr = step[0] * op.lr_scale + step[3] * (1.0 - op.lr_scale);
    let factors = Factors {
        clip,
        beta1: op.beta1,
        beta2: op.beta2,
        keep: 1.0 - lr * op.weight_decay,
        rate: lr / step[1],
        root: 1.0 / step[2],
        eps: op.eps,
    };
    let len = m.len();
    cpu.pool.for_rows(([param, grad, m, v], [copy]), len, rows_per_task(4), |_, ([param, grad, m, v], [copy])| {
        update(cpu.isa, param, grad, m, v, &factors);
        convert(cpu.isa, &param[..copy.len()], copy);
    });
}

struct Factors {
    clip: f32,
    beta1: f32,
    beta2: f32,
    keep: f32,
    rate: f32,
    root: f32,
    eps: f32,
}

vectorised! {
    fn update<FMA>(param: &mut [f32], grad: &mut [f32], m: &mut [f32], v: &mut [f32], f: &Factors) {
        for ((p, g), (m, v)) in param.iter_mut().zip(grad.iter_mut()).zip(m.iter_mut().zip(v.iter_mut())) {
            let scaled = *g * f.clip;
            *g = 0.0;
            *m = madd::<FMA>(f.beta1, *m, (1.0 - f.beta1) * scaled);
            *v = madd::<FMA>(f.beta2, *v, (1.0 - f.beta2) * scaled * scaled);
            *p = *p * f.keep - f.rate * *m / (v.sqrt() * f.root + f.eps);
        }
    }
}
