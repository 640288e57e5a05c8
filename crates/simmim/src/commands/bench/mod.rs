//! `simmim bench`.

pub(crate) mod loader;
pub(crate) mod step;
