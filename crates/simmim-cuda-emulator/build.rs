//! Compiles the kernels of `simmim-cuda` and the stand-in libraries by the C++ compiler of this machine.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a build script may fail loudly")]

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::{env, fs};

/// Names of the kernels in a source.
fn kernels(source: &str) -> Vec<&str> {
    let declarations = source.split("extern \"C\" __global__ void").skip(1);
    declarations
        .map(|rest| {
            let rest = match rest.trim_start().strip_prefix("__launch_bounds__(") {
                Some(bounds) => bounds.split_once(')').expect("bounds end").1,
                None => rest,
            };
            rest.split('(').next().expect("a name").trim()
        })
        .collect()
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir(folder)
        .unwrap_or_else(|e| panic!("{}: {e}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension() == Some(OsStr::new("cu")))
        .collect();
    all.sort();
    all
}

fn compiler(folders: &[&Path]) -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).pic(true).cargo_metadata(false).warnings(true);
    build.flag("-fvisibility=hidden").flag("-fno-threadsafe-statics").flag("-g0").flag("-Wno-unknown-pragmas");
    // An operation of CUDA is rounded as it is written; products and sums fuse only where `fmaf` says so.
    build.flag("-ffp-contract=off").flag("-Wno-unused-function").flag("-Wno-unused-variable");
    folders.iter().for_each(|folder| {
        build.include(folder);
    });
    build
}

fn link(objects: &[PathBuf], name: &str, out: &Path, more: &[&str]) {
    let tool = compiler(&[]).get_compiler();
    let mut command = tool.to_command();
    // Found by its soname, a library that is already loaded answers whoever asks for it by name.
    command.arg("-shared").arg(format!("-Wl,-soname,{name}")).args(objects).arg("-o").arg(out.join(name)).args(more);
    let status = command.status().expect("the C++ compiler starts");
    assert!(status.success(), "linking {name} failed");
}

fn main() {
    let here = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap());
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap());
    let (cpp, own, theirs) = (here.join("cpp"), here.join("kernels"), here.join("../simmim-cuda/kernels"));
    for folder in [&cpp, &own, &theirs] {
        println!("cargo:rerun-if-changed={}", folder.display());
    }
    if env::var("CARGO_CFG_TARGET_OS").as_deref() != Ok("linux") {
        return;
    }
    let mut all = sources(&theirs);
    all.extend(sources(&own));
    let mut wrappers = Vec::new();
    for path in all {
        let source = fs::read_to_string(&path).expect("a readable kernel");
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        let mut text = format!("#include \"{}\"\n#include \"register.h\"\n", path.canonicalize().unwrap().display());
        kernels(&source).iter().for_each(|name| text += &format!("REGISTER({name})\n"));
        let wrapper = out.join(format!("{stem}.cpp"));
        fs::write(&wrapper, text).expect("a writable output folder");
        wrappers.push(wrapper);
    }
    let mut kernels = compiler(&[&cpp, &own, &theirs]);
    // Indices into arrays of known size are checked; the handler is in fibers.cpp.
    kernels
        .define("SIMMIM_EMULATOR", None)
        .flag("-fsanitize=bounds")
        .flag("-fno-sanitize-recover=bounds")
        .files(&wrappers);
    let mut objects = kernels.compile_intermediates();
    let runtime = [cpp.join("driver.cpp"), cpp.join("fibers.cpp")];
    objects.extend(compiler(&[&cpp]).files(&runtime).compile_intermediates());
    link(&objects, "libcuda.so", &out, &[]);
    let blas = compiler(&[&cpp]).file(cpp.join("blas.cpp")).compile_intermediates();
    let folder = format!("-L{}", out.display());
    link(&blas, "libcublasLt.so", &out, &[&folder, "-lcuda"]);
}
