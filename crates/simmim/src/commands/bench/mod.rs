//! `simmim bench`.

pub(crate) mod embed;
pub(crate) mod loader;
pub(crate) mod step;
