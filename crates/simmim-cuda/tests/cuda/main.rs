//! The executor on the emulator: operations, models, training, faults. One after another, because a fault stops the device.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

mod errors;
mod faults;
mod models;
mod operations;

use simmim_cuda::{CudaExecutor, Products};
use simmim_cuda_emulator::{Emulator, Libraries};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

/// The emulator, for one test at a time.
fn emulator() -> (MutexGuard<'static, ()>, &'static Emulator) {
    static ONE: OnceLock<Mutex<()>> = OnceLock::new();
    let guard = ONE.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    let emulator = Emulator::install(Libraries::All);
    let _ = emulator.take_fault();
    (guard, emulator)
}

fn executor(products: Products) -> CudaExecutor {
    let executor = CudaExecutor::with_products(0, products).unwrap();
    assert_eq!(executor.has_library(), products == Products::Library);
    executor
}
