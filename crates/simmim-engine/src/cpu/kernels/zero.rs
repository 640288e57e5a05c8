//! Kernel of `zero`.

use super::Args;

pub(crate) fn zero(args: &mut Args<'_>) {
    let (_, [y], _) = args.split::<1>();
    y.fill(0.0);
}
