//! Kernel of `drain`.

use super::Args;

pub(crate) fn drain(args: &mut Args<'_>) {
    let (_, [sum, total], _) = args.split::<2>();
    total.copy_from_slice(sum);
    sum.fill(0.0);
}
