//! What a program becomes on the device: launches, products, copies, with every address resolved.

use bytemuck::{NoUninit, Pod, Zeroable};

/// An address in the memory of the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Pod, Zeroable)]
#[repr(transparent)]
pub(crate) struct Address(pub(crate) u64);

impl Address {
    /// What kernels take for an operand that is not there.
    pub(crate) const NONE: Self = Self(0);

    /// The address of the `n`-th four-byte element from here on.
    pub(crate) fn element(self, n: usize) -> Self {
        Self(self.0 + 4 * n as u64)
    }

    /// The largest power of two, up to 256, that divides it.
    pub(crate) fn alignment(self) -> u32 {
        1 << self.0.trailing_zeros().min(8)
    }
}

/// `struct Values` of `values.cuh`: numbers of a tensor, floats or bfloat16.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub(crate) struct Values {
    pub(crate) start: Address,
    rounded: i32,
    unused: i32,
}

impl Values {
    /// What kernels take for an operand that is not there.
    pub(crate) const NONE: Self = Self::new(Address::NONE, false);

    pub(crate) const fn new(start: Address, rounded: bool) -> Self {
        Self { start, rounded: rounded as i32, unused: 0 }
    }

    pub(crate) fn rounded(self) -> bool {
        self.rounded != 0
    }

    /// The values from the `n`-th on.
    pub(crate) fn from(self, n: usize) -> Self {
        let width = if self.rounded() { 2 } else { 4 };
        Self { start: Address(self.start.0 + width * n as u64), ..self }
    }
}

/// A kernel: the file that holds it, and its name there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Kernel(pub(crate) &'static str, pub(crate) &'static str);

/// A kernel with its grid and its parameters, as bytes of the types that it takes.
#[derive(Debug, Clone)]
pub(crate) struct Launch {
    pub(crate) kernel: Kernel,
    pub(crate) grid: [u32; 3],
    pub(crate) threads: u32,
    pub(crate) parameters: Vec<Vec<u8>>,
}

impl Launch {
    pub(crate) fn new(kernel: Kernel, grid: [usize; 3], threads: u32) -> Self {
        let grid = grid.map(|extent| u32::try_from(extent).unwrap_or(u32::MAX));
        Self { kernel, grid, threads, parameters: Vec::new() }
    }

    /// A kernel with one thread of 256 for each element.
    pub(crate) fn for_each(kernel: Kernel, elements: usize) -> Self {
        Self::new(kernel, [elements.div_ceil(256), 1, 1], 256)
    }

    /// The next parameter.
    pub(crate) fn with<T: NoUninit>(mut self, parameter: T) -> Self {
        self.parameters.push(bytemuck::bytes_of(&parameter).to_vec());
        self
    }

    pub(crate) fn address(self, address: Address) -> Self {
        self.with(address)
    }

    /// Values for a kernel of floats, which takes their address, or for one that takes either type.
    pub(crate) fn of(self, either: bool, values: Values) -> Self {
        if either { self.with(values) } else { self.address(values.start) }
    }

    /// An `int` of the kernel.
    pub(crate) fn int(self, value: usize) -> Self {
        self.with(i32::try_from(value).unwrap_or(i32::MAX))
    }

    /// An `Index` of the kernel.
    pub(crate) fn index(self, value: usize) -> Self {
        self.with(value as i64)
    }

    pub(crate) fn flag(self, value: bool) -> Self {
        self.with(i32::from(value))
    }
}

/// A product of row-major matrices for cuBLASLt: `d [rows][columns] = a b (+ d) (+ bias)`, where each operand may be stored
/// transposed. Sums are floats.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Product {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    pub(crate) terms: usize,
    /// Of one type with `b`.
    pub(crate) a: Values,
    /// Whether `a` is stored as `[terms][rows]`.
    pub(crate) a_transposed: bool,
    pub(crate) b: Values,
    /// Whether `b` is stored as `[columns][terms]`.
    pub(crate) b_transposed: bool,
    pub(crate) d: Values,
    pub(crate) accumulate: bool,
    /// One float for each column of the result.
    pub(crate) bias: Option<Address>,
}

/// One thing that the device does.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Launch(Launch),
    Product(Product),
    Copy { to: Address, from: Address, bytes: usize },
    Zero { at: Address, bytes: usize },
}
