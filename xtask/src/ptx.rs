//! Compiles the CUDA kernels to PTX by a pinned NVRTC, which needs neither a GPU nor a toolkit: it comes from PyPI. `ptxas` of the
//! same release then says how many registers each kernel takes, and that none of them spills.

#![allow(unsafe_code, reason = "calls NVRTC; the declarations stand beside the calls")]

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, ptr};

/// CUDA 12.0: its PTX 8.0 is known to every driver for CUDA 12 and 13.
const RELEASE: &str = "12.0.140";
/// Ampere; the driver makes code of it for the card at hand.
const TARGET: &str = "compute_80";
/// Cards for which `ptxas` looks for spills.
const CARDS: [&str; 3] = ["sm_80", "sm_89", "sm_90"];

type Result<T> = std::result::Result<T, String>;

/// Compiles all kernels; with `check`, compares with what is committed.
pub(crate) fn run(check: bool) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let tools = Tools::install(&root.join("target/ptx-tools"))?;
    let kernels = root.join("crates/simmim-cuda/kernels");
    let emulator = root.join("crates/simmim-cuda-emulator/kernels");
    let mut stale = Vec::new();
    for (from, to) in [(&kernels, root.join("crates/simmim-cuda/ptx")), (&emulator, emulator.clone())] {
        for source in sources(from)? {
            let text = tools.compile(&source, &[&kernels, from])?;
            let target = to.join(source.with_extension("ptx").file_name().unwrap_or_default());
            tools.assemble(&source, &text)?;
            if !check {
                fs::write(&target, text).map_err(|e| format!("{}: {e}", target.display()))?;
            } else if fs::read_to_string(&target).ok().as_deref() != Some(&*text) {
                stale.push(target.display().to_string());
            }
        }
    }
    if stale.is_empty() { Ok(()) } else { Err(format!("run `cargo xtask ptx`, these are stale: {}", stale.join(", "))) }
}

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let paths = entries.filter_map(|entry| entry.ok().map(|e| e.path()));
    let mut all: Vec<PathBuf> = paths.filter(|p| p.extension().is_some_and(|e| e == "cu")).collect();
    all.sort();
    Ok(all)
}

struct Tools {
    folder: PathBuf,
    nvrtc: Library,
}

impl Tools {
    /// Installs the pinned release where it is not there yet.
    fn install(folder: &Path) -> Result<Self> {
        let library = folder.join("nvidia/cuda_nvrtc/lib/libnvrtc.so.12");
        if !library.is_file() {
            let python = env::var("PYTHON").unwrap_or_else(|_| "python3".into());
            let packages = ["nvidia-cuda-nvrtc-cu12", "nvidia-cuda-nvcc-cu12"].map(|name| format!("{name}=={RELEASE}"));
            let mut pip = Command::new(&python);
            pip.args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"]).arg(folder).args(packages);
            let status =
                pip.status().map_err(|e| format!("{python}: {e}; help: install Python, or name it in PYTHON"))?;
            if !status.success() {
                return Err(format!("pip cannot install NVRTC {RELEASE}; help: it needs Linux and a package index"));
            }
        }
        let load = |path: &Path| {
            // SAFETY: NVIDIA's library as pip has installed it; its constructors are its own.
            unsafe { Library::new(path) }.map_err(|e| format!("{}: {e}", path.display()))
        };
        // Found by its name once it is loaded.
        std::mem::forget(load(&library.with_file_name("libnvrtc-builtins.so.12.0"))?);
        Ok(Self { folder: folder.to_owned(), nvrtc: load(&library)? })
    }

    /// A function of NVRTC.
    ///
    /// # Safety
    /// `T` is its type in nvrtc.h.
    unsafe fn function<T: Copy>(&self, name: &str) -> Result<T> {
        // SAFETY: the caller's promise; the library lives as long as `self`.
        unsafe { self.nvrtc.get::<T>(name.as_bytes()) }.map(|symbol| *symbol).map_err(|e| e.to_string())
    }

    fn compile(&self, source: &Path, includes: &[&PathBuf]) -> Result<String> {
        type Create = unsafe extern "C" fn(
            *mut *mut c_void,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(*mut c_void, c_int, *const *const c_char) -> c_int;
        let text = fs::read_to_string(source).map_err(|e| format!("{}: {e}", source.display()))?;
        let name = source.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let c = |text: String| CString::new(text).map_err(|e| e.to_string());
        let mut options = vec![c(format!("--gpu-architecture={TARGET}"))?, c("--std=c++17".into())?];
        for folder in includes {
            options.push(c(format!("-I{}", folder.display()))?);
        }
        let (text, name_c) = (c(text)?, c(name.clone())?);
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program = ptr::null_mut();
        // SAFETY: strings end in zero bytes and live until the calls return; the program is a handle of this library.
        let status = unsafe {
            let create: Create = self.function("nvrtcCreateProgram")?;
            let compile: Compile = self.function("nvrtcCompileProgram")?;
            create(&raw mut program, text.as_ptr(), name_c.as_ptr(), 0, ptr::null(), ptr::null());
            compile(program, c_int::try_from(pointers.len()).unwrap_or(0), pointers.as_ptr())
        };
        if status != 0 {
            return Err(format!("{name}:\n{}", self.output(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog")?));
        }
        self.output(program, "nvrtcGetPTXSize", "nvrtcGetPTX")
    }

    /// The log or the PTX of a program.
    fn output(&self, program: *mut c_void, size: &str, get: &str) -> Result<String> {
        let mut bytes = 0usize;
        // SAFETY: the first function writes a size, the second so many bytes.
        let buffer = unsafe {
            let size: unsafe extern "C" fn(*mut c_void, *mut usize) -> c_int = self.function(size)?;
            let get: unsafe extern "C" fn(*mut c_void, *mut u8) -> c_int = self.function(get)?;
            size(program, &raw mut bytes);
            let mut buffer = vec![0u8; bytes];
            get(program, buffer.as_mut_ptr());
            buffer
        };
        Ok(String::from_utf8_lossy(&buffer).trim_end_matches('\0').to_owned())
    }

    /// Makes code for several cards and refuses kernels that spill registers.
    fn assemble(&self, source: &Path, ptx: &str) -> Result<()> {
        let input = self.folder.join("kernel.ptx");
        fs::write(&input, ptx).map_err(|e| format!("{}: {e}", input.display()))?;
        for card in CARDS {
            let mut ptxas = Command::new(self.folder.join("nvidia/cuda_nvcc/bin/ptxas"));
            ptxas.args(["-v", "-o", "/dev/null", "-arch", card]).arg(&input);
            let output = ptxas.output().map_err(|e| format!("ptxas: {e}"))?;
            let log = String::from_utf8_lossy(&output.stderr).into_owned();
            if !output.status.success() {
                return Err(format!("{} for {card}:\n{log}", source.display()));
            }
            let mut entry = "";
            for line in log.lines() {
                if let Some((_, rest)) = line.split_once("Compiling entry function '") {
                    entry = rest.split('\'').next().unwrap_or_default();
                }
                if line.contains("spill stores") && !line.contains(" 0 bytes spill stores") {
                    return Err(format!("{entry} of {} for {card}: {}", source.display(), line.trim()));
                }
            }
        }
        Ok(())
    }
}
