//! Stand-ins for CUDA's driver and for cuBLASLt that run simmim's kernels on the processor. For tests only.
//!
//! The kernels of `simmim-cuda` are compiled by a C++ compiler. Threads of a block are fibers; orders of blocks, warps and threads
//! are drawn anew for each launch, and one warp runs as far as it can go before the next, so that a missing barrier shows. Work
//! on a stream runs as late as it may, asynchronous copies land at once or as late as they may, new memory and shared memory hold
//! NaN, and guard zones lie around allocations and shared arrays.
//!
//! [`Emulator::install`] loads both libraries into the process under the names that cudarc asks for. It says nothing about
//! speed, about what only hardware does (occupancy, memory coalescing, the rounding of tensor cores), or about the compiler that
//! makes machine code from PTX.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "calls the stand-in libraries through the C interface that cpp/driver.cpp defines")]

use libloading::{Library, Symbol};
use std::ffi::{CString, c_char, c_int};
use std::path::PathBuf;
use std::sync::OnceLock;

/// The stand-in libraries, loaded for the rest of the process.
#[derive(Debug)]
pub struct Emulator {
    driver: Library,
    _blas: Option<Library>,
}

/// Which libraries to stand in for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Libraries {
    /// The driver and cuBLASLt.
    All,
    /// The driver alone: products run on own kernels.
    Driver,
}

/// The folder of `libcuda.so` and `libcublasLt.so`, for a child process's `LD_LIBRARY_PATH`.
#[must_use]
pub fn library_folder() -> PathBuf {
    PathBuf::from(env!("OUT_DIR"))
}

impl Emulator {
    /// Loads the stand-ins, once in a process; the first call decides which.
    ///
    /// # Panics
    /// Where they cannot be loaded: the build script makes them.
    pub fn install(libraries: Libraries) -> &'static Self {
        static LOADED: OnceLock<Emulator> = OnceLock::new();
        LOADED.get_or_init(|| {
            let load = |name: &str| {
                let path = library_folder().join(name);
                // SAFETY: the libraries are those of the build script; their constructors only fill tables.
                unsafe { Library::new(&path) }.unwrap_or_else(|e| panic!("{}: {e}", path.display()))
            };
            let driver = load("libcuda.so");
            Self { driver, _blas: (libraries == Libraries::All).then(|| load("libcublasLt.so")) }
        })
    }

    /// Where the orders of execution are drawn from.
    pub fn seed(&self, seed: u64) {
        // SAFETY: `void emulator_seed(uint64_t)`.
        unsafe { self.symbol::<unsafe extern "C" fn(u64)>("emulator_seed")(seed) }
    }

    /// Plants a fault: threads pass the barriers and waits of that name (`linear.cu:42`) without stopping, or load
    /// fragments of the wrong layout there; an empty name mends it.
    /// Returns how many places met so far have the name.
    ///
    /// # Panics
    /// Where the name holds a zero byte.
    pub fn skip(&self, name: &str) -> usize {
        let name = CString::new(name).unwrap_or_else(|_| panic!("a name without zero bytes"));
        // SAFETY: `int emulator_skip(const char*)`; the string lives until it returns.
        let found =
            unsafe { self.symbol::<unsafe extern "C" fn(*const c_char) -> c_int>("emulator_skip")(name.as_ptr()) };
        usize::try_from(found).unwrap_or(0)
    }

    /// The places met so far where threads of a block or a warp wait: `(kind, "file.cu:line")`.
    #[must_use]
    pub fn sites(&self) -> Vec<(String, String)> {
        let text = self.text("emulator_sites");
        text.lines().filter_map(|l| l.rsplit_once(' ')).map(|(k, n)| (k.to_owned(), n.to_owned())).collect()
    }

    /// Kernels launched so far.
    #[must_use]
    pub fn launches(&self) -> usize {
        // SAFETY: `size_t emulator_launches()`.
        unsafe { self.symbol::<unsafe extern "C" fn() -> usize>("emulator_launches")() }
    }

    /// What went wrong since the last call, and mends it; calls of the driver fail until then.
    #[must_use]
    pub fn take_fault(&self) -> Option<String> {
        Some(self.text("emulator_take_fault")).filter(|text| !text.is_empty())
    }

    fn text(&self, function: &str) -> String {
        let mut buffer = vec![0u8; 1 << 16];
        // SAFETY: `void f(char*, size_t)` writes at most so many bytes, and a zero byte among them.
        unsafe { self.symbol::<unsafe extern "C" fn(*mut u8, usize)>(function)(buffer.as_mut_ptr(), buffer.len()) };
        buffer.truncate(buffer.iter().position(|&b| b == 0).unwrap_or(0));
        String::from_utf8_lossy(&buffer).into_owned()
    }

    /// # Safety
    /// `T` is the type of the function of that name in cpp/driver.cpp.
    unsafe fn symbol<T>(&self, name: &str) -> Symbol<'_, T> {
        // SAFETY: the caller's promise.
        unsafe { self.driver.get(name.as_bytes()) }.unwrap_or_else(|e| panic!("{name}: {e}"))
    }
}
