//! Names the instruction sets that are compiled in: `simmim_x86` (AVX2, AVX-512) and `simmim_amx` (tile registers, for which Linux is
//! asked). With `SIMMIM_PORTABLE=1` in the environment neither is, as on processors of another kind: so the portable code is built and
//! tested on any machine.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=SIMMIM_PORTABLE");
    println!("cargo:rustc-check-cfg=cfg(simmim_x86)");
    println!("cargo:rustc-check-cfg=cfg(simmim_amx)");
    let target = |key: &str| std::env::var(format!("CARGO_CFG_TARGET_{key}")).unwrap_or_default();
    let portable = std::env::var("SIMMIM_PORTABLE").is_ok_and(|v| !v.is_empty() && v != "0");
    if target("ARCH") == "x86_64" && !portable {
        println!("cargo:rustc-cfg=simmim_x86");
        if target("OS") == "linux" {
            println!("cargo:rustc-cfg=simmim_amx");
        }
    }
}
