//! Products by cuBLASLt, which is loaded where it is found: it comes with CUDA toolkits, in packages of distributions and in
//! Python wheels, and without it the kernels of `linear.cu` compute.
//!
//! cudarc's own loader knows names of one major version and panics without the library; this one takes any of 11 to 13, whose
//! interfaces agree in what is used here.

#![allow(unsafe_code, reason = "calls cuBLASLt; the declarations stand beside the calls")]

use crate::error::CudaError;
use crate::step::{Address, Product, Values};
use cudarc::driver::sys::{CUresult, CUstream};
use libloading::Library;
use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::{c_int, c_void};
use std::path::PathBuf;

/// A handle or a descriptor.
type Opaque = *mut c_void;

const FLOAT: c_int = 0; // CUDA_R_32F
const BFLOAT16: c_int = 14; // CUDA_R_16BF
const COMPUTE_FLOAT: c_int = 68; // CUBLAS_COMPUTE_32F: no TensorFloat-32
const TRANSPOSED: c_int = 1; // CUBLAS_OP_T
const DESC_TRANSA: c_int = 3;
const DESC_TRANSB: c_int = 4;
const DESC_EPILOGUE: c_int = 7;
const DESC_BIAS_POINTER: c_int = 8;
const EPILOGUE_BIAS: c_int = 4;
const PREF_MAX_WORKSPACE: c_int = 1;
/// Of A, B, C and D, one after another.
const PREF_MIN_ALIGNMENT: [c_int; 4] = [5, 6, 7, 8];
/// What an algorithm may ask for.
const MOST_WORKSPACE: usize = 32 << 20;

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Heuristic {
    algorithm: [u64; 8],
    workspace: usize,
    status: c_int,
    waves: f32,
    reserved: [c_int; 4],
}

macro_rules! functions {
    ($($field:ident = $name:literal: fn($($argument:ty),*);)*) => {
        /// The functions in use. All return a status, zero for success.
        struct Functions { $($field: unsafe extern "C" fn($($argument),*) -> c_int),* }

        impl Functions {
            fn of(library: &Library) -> Option<Self> {
                // SAFETY: the names belong to functions of these types in cublasLt.h; `Blas` keeps the library while it has them.
                Some(Self { $($field: unsafe { *library.get(concat!($name, "\0").as_bytes()).ok()? }),* })
            }
        }
    };
}

functions! {
    create = "cublasLtCreate": fn(*mut Opaque);
    destroy = "cublasLtDestroy": fn(Opaque);
    layout_create = "cublasLtMatrixLayoutCreate": fn(*mut Opaque, c_int, u64, u64, i64);
    layout_destroy = "cublasLtMatrixLayoutDestroy": fn(Opaque);
    desc_create = "cublasLtMatmulDescCreate": fn(*mut Opaque, c_int, c_int);
    desc_destroy = "cublasLtMatmulDescDestroy": fn(Opaque);
    desc_set = "cublasLtMatmulDescSetAttribute": fn(Opaque, c_int, *const c_void, usize);
    preference_create = "cublasLtMatmulPreferenceCreate": fn(*mut Opaque);
    preference_destroy = "cublasLtMatmulPreferenceDestroy": fn(Opaque);
    preference_set = "cublasLtMatmulPreferenceSetAttribute": fn(Opaque, c_int, *const c_void, usize);
    heuristic = "cublasLtMatmulAlgoGetHeuristic": fn(Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, Opaque, c_int, *mut Heuristic, *mut c_int);
    matmul = "cublasLtMatmul": fn(Opaque, Opaque, *const c_void, *const c_void, Opaque, *const c_void, Opaque, *const c_void, *const c_void, Opaque, *mut c_void, Opaque, *const c_void, *mut c_void, usize, CUstream);
}

/// What a product looks like without its addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    extents: [usize; 3],
    transposed: [bool; 2],
    /// Whether the operands are bfloat16, and whether the result is.
    rounded: [bool; 2],
    biased: bool,
    alignment: u32,
}

impl Shape {
    fn of(p: &Product) -> Self {
        let aligned = [p.a, p.b, p.d].map(|values| values.start.alignment()).into_iter().min().unwrap_or(1);
        Self {
            extents: [p.rows, p.columns, p.terms],
            transposed: [p.a_transposed, p.b_transposed],
            rounded: [p.a, p.d].map(Values::rounded),
            biased: p.bias.is_some(),
            alignment: p.bias.map_or(aligned, |bias| aligned.min(bias.alignment())),
        }
    }
}

/// Descriptors of a shape with the algorithm chosen for it; none where the library does not take it.
struct Plan {
    desc: Opaque,
    layouts: [Opaque; 3],
    heuristic: Option<Heuristic>,
}

/// The library with the plans made so far.
pub(crate) struct Blas {
    functions: Functions,
    handle: Opaque,
    plans: RefCell<HashMap<Shape, Plan>>,
    /// After all that uses it.
    _library: Library,
}

// SAFETY: handles and descriptors belong to no thread; they are used by one at a time, because `RefCell` makes `Blas` not `Sync`.
unsafe impl Send for Blas {}

/// Where the library may be: by name wherever the system looks, then where toolkits and wheels put it.
fn candidates() -> Vec<PathBuf> {
    let names = [
        "libcublasLt.so",
        "libcublasLt.so.13",
        "libcublasLt.so.12",
        "libcublasLt.so.11",
        "cublasLt64_13.dll",
        "cublasLt64_12.dll",
    ];
    let mut all: Vec<PathBuf> = names.iter().map(PathBuf::from).collect();
    let mut folders: Vec<PathBuf> = Vec::new();
    for variable in ["CUDA_HOME", "CUDA_PATH"] {
        folders.extend(std::env::var_os(variable).map(|home| PathBuf::from(home).join("lib64")));
    }
    folders.push("/usr/local/cuda/lib64".into());
    folders.push("/opt/cuda/lib64".into());
    for variable in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        let Some(home) = std::env::var_os(variable).map(PathBuf::from) else { continue };
        folders.push(home.join("lib"));
        let versions = std::fs::read_dir(home.join("lib")).into_iter().flatten().flatten().map(|entry| entry.path());
        let python = versions.filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("python3")));
        for packages in python.map(|p| p.join("site-packages/nvidia")) {
            folders.extend(["cublas/lib", "cu13/lib"].map(|folder| packages.join(folder)));
        }
    }
    for folder in folders {
        all.extend(names.iter().map(|name| folder.join(name)));
    }
    all
}

/// Creates an object by a function that writes its handle.
fn created(create: impl FnOnce(*mut Opaque) -> c_int) -> Option<Opaque> {
    let mut handle = std::ptr::null_mut();
    (create(&raw mut handle) == 0).then_some(handle)
}

impl Blas {
    /// The library, where it is found.
    pub(crate) fn load() -> Option<Self> {
        // SAFETY: its constructors are cuBLASLt's own.
        let library = candidates().iter().find_map(|path| unsafe { Library::new(path) }.ok())?;
        let functions = Functions::of(&library)?;
        // SAFETY: writes a handle.
        let handle = created(|to| unsafe { (functions.create)(to) })?;
        Some(Self { functions, handle, plans: RefCell::default(), _library: library })
    }

    /// Working memory that a product needs, where the library takes it.
    pub(crate) fn workspace(&self, product: &Product) -> Option<usize> {
        let shape = Shape::of(product);
        let mut plans = self.plans.borrow_mut();
        let plan = match plans.entry(shape) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => new.insert(self.plan(product, &shape)?),
        };
        Some(plan.heuristic?.workspace)
    }

    /// In the library's eyes matrices lie column by column, so it computes the transposed result from the operands in the other
    /// order: `d^T = b^T a^T`.
    fn plan(&self, p: &Product, shape: &Shape) -> Option<Plan> {
        let f = &self.functions;
        let layout = |values: Values, rows: usize, columns: usize| {
            let ty = if values.rounded() { BFLOAT16 } else { FLOAT };
            // SAFETY: writes a handle.
            created(|to| unsafe { (f.layout_create)(to, ty, rows as u64, columns as u64, rows as i64) })
        };
        let b = if p.b_transposed { layout(p.b, p.terms, p.columns) } else { layout(p.b, p.columns, p.terms) };
        let a = if p.a_transposed { layout(p.a, p.rows, p.terms) } else { layout(p.a, p.terms, p.rows) };
        let layouts = [b?, a?, layout(p.d, p.columns, p.rows)?];
        // SAFETY: writes a handle.
        let desc = created(|to| unsafe { (f.desc_create)(to, COMPUTE_FLOAT, FLOAT) })?;
        let mut plan = Plan { desc, layouts, heuristic: None };
        let set = |attribute: c_int, value: c_int| {
            // SAFETY: the attributes given below are four bytes wide.
            unsafe { (f.desc_set)(desc, attribute, (&raw const value).cast(), size_of::<c_int>()) == 0 }
        };
        let mut set_all = true;
        if p.b_transposed {
            set_all &= set(DESC_TRANSA, TRANSPOSED);
        }
        if p.a_transposed {
            set_all &= set(DESC_TRANSB, TRANSPOSED);
        }
        if let Some(bias) = p.bias {
            set_all &= set(DESC_EPILOGUE, EPILOGUE_BIAS) && self.set_bias(desc, bias);
        }
        if set_all {
            plan.heuristic = self.choose(&plan, shape.alignment);
        }
        Some(plan)
    }

    fn set_bias(&self, desc: Opaque, bias: Address) -> bool {
        // SAFETY: the attribute is a pointer of eight bytes.
        unsafe { (self.functions.desc_set)(desc, DESC_BIAS_POINTER, (&raw const bias.0).cast(), size_of::<u64>()) == 0 }
    }

    fn choose(&self, plan: &Plan, alignment: u32) -> Option<Heuristic> {
        let f = &self.functions;
        // SAFETY: writes a handle.
        let preference = created(|to| unsafe { (f.preference_create)(to) })?;
        let workspace = MOST_WORKSPACE;
        // SAFETY: the workspace is eight bytes wide, alignments are four.
        let mut fine = unsafe {
            (f.preference_set)(preference, PREF_MAX_WORKSPACE, (&raw const workspace).cast(), size_of::<usize>()) == 0
        };
        for attribute in PREF_MIN_ALIGNMENT {
            // SAFETY: as above.
            fine &= unsafe {
                (f.preference_set)(preference, attribute, (&raw const alignment).cast(), size_of::<u32>()) == 0
            };
        }
        let mut found = Heuristic { algorithm: [0; 8], workspace: 0, status: 1, waves: 0.0, reserved: [0; 4] };
        let mut count = 0;
        let [b, a, d] = plan.layouts;
        // SAFETY: all handles live; at most one result is written.
        let status =
            unsafe { (f.heuristic)(self.handle, plan.desc, b, a, d, d, preference, 1, &raw mut found, &raw mut count) };
        // SAFETY: created above, destroyed once.
        unsafe { (f.preference_destroy)(preference) };
        (fine && status == 0 && count == 1 && found.status == 0).then_some(found)
    }

    /// Puts a product on a stream. `scratch` begins the working memory that [`Blas::workspace`] has asked for.
    pub(crate) fn enqueue(&self, p: &Product, scratch: Address, stream: CUstream) -> Result<(), CudaError> {
        let failed = Err(CudaError::Driver { call: "cublasLtMatmul", code: CUresult::CUDA_ERROR_UNKNOWN });
        if self.workspace(p).is_none() {
            return failed;
        }
        let plans = self.plans.borrow();
        let (plan, alpha, beta) = (&plans[&Shape::of(p)], 1.0f32, if p.accumulate { 1.0f32 } else { 0.0 });
        let Some(heuristic) = plan.heuristic else { return failed };
        if let Some(bias) = p.bias
            && !self.set_bias(plan.desc, bias)
        {
            return failed;
        }
        let [b, a, d] = plan.layouts;
        let to = p.d.start.0 as *mut c_void;
        // SAFETY: (1) the handles live as long as `self`; (2) operands have the extents of their layouts and lie in allocations of
        // the executor (`Program` was verified); (3) the working memory is as large as the algorithm asked for, because `steps`
        // reserves it for this product; (4) scalars are read before the call returns (pointer mode of the host).
        let status = unsafe {
            (self.functions.matmul)(
                self.handle,
                plan.desc,
                (&raw const alpha).cast(),
                p.b.start.0 as *const c_void,
                b,
                p.a.start.0 as *const c_void,
                a,
                (&raw const beta).cast(),
                to,
                d,
                to,
                d,
                heuristic.algorithm.as_ptr().cast(),
                scratch.0 as *mut c_void,
                heuristic.workspace,
                stream,
            )
        };
        if status == 0 { Ok(()) } else { failed }
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        #[allow(clippy::iter_over_hash_type, reason = "destroyed in any order")]
        for plan in self.plans.get_mut().values() {
            // SAFETY: created by this library, destroyed once; the executor has waited for what used them.
            unsafe {
                for layout in plan.layouts {
                    (self.functions.layout_destroy)(layout);
                }
                (self.functions.desc_destroy)(plan.desc);
            }
        }
        // SAFETY: as above.
        unsafe { (self.functions.destroy)(self.handle) };
    }
}
