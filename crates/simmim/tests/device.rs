//! `--device`: what a user meets with and without a GPU. The stand-in driver is found as a real one would be.

#![cfg(all(target_os = "linux", feature = "cuda"))]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]

use std::process::{Command, Output};

/// Runs simmim with the stand-in driver and these settings of it.
fn simmim(arguments: &[&str], settings: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_simmim"));
    command.args(arguments).env("LD_LIBRARY_PATH", simmim_cuda_emulator::library_folder());
    command.envs(settings.iter().copied());
    command.output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_device_that_does_not_do_is_an_error_with_help() {
    for (device, settings, message, help) in [
        ("cuda:7", [("SIMMIM_EMULATOR_DEVICES", "1")], "there is no CUDA device 7; there are 1", "cuda:0 is the first"),
        ("cuda", [("SIMMIM_EMULATOR_DEVICES", "0")], "there is no CUDA device 0; there are 0", "CUDA_VISIBLE_DEVICES"),
        ("cuda", [("SIMMIM_EMULATOR_DRIVER", "11080")], "the NVIDIA driver knows CUDA 11.8, and 12.0 is needed", "525"),
        ("cuda", [("SIMMIM_EMULATOR_CAPABILITY", "75")], "compute capability 7.5, and 8.0 is needed", "--device cpu"),
    ] {
        let output = simmim(&["selftest", "--quick", "--device", device], &settings);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(message) && text.contains(help), "{text}");
    }
}

#[test]
fn memory_that_does_not_suffice_says_what_to_do() {
    let arguments =
        ["bench", "step", "--model", "vit_tiny_patch16_224", "--batch", "4", "--steps", "1", "--device", "cuda"];
    let output = simmim(&arguments, &[("SIMMIM_EMULATOR_MEMORY", "20000000")]);
    let text = stderr(&output);
    assert!(!output.status.success() && text.contains("cannot allocate") && text.contains("smaller batch"), "{text}");
}

#[test]
fn unknown_devices_are_refused_with_the_known_ones() {
    for wrong in ["gpu", "cuda:", "cuda:x", "cuda:-1"] {
        let text = stderr(&simmim(&["selftest", "--device", wrong], &[]));
        assert!(text.contains(wrong) && text.contains("auto, cpu, cuda or cuda:N"), "{text}");
    }
}

#[test]
fn an_instruction_set_goes_with_the_processor_alone() {
    let arguments = ["bench", "step", "--model", "vit_tiny_patch16_224", "--device", "cuda", "--isa", "avx2"];
    let text = stderr(&simmim(&arguments, &[]));
    assert!(text.contains("--isa avx2 names instructions of the processor") && text.contains("leave one"), "{text}");
}

/// Operations, training steps against the processor, a resume, in floats and in bfloat16: on the emulated device, with the stand-in of cuBLASLt.
#[test]
fn the_self_test_is_right_on_the_emulated_device() {
    let folder = tempfile::tempdir().unwrap();
    let table = folder.path().join("selftest.txt");
    let output = simmim(&["selftest", "--quick", "--device", "cuda", "--out", table.to_str().unwrap()], &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("everything is right"), "{text}\n{}", stderr(&output));
    let written = std::fs::read_to_string(table).unwrap();
    assert!(
        written.contains("on fibers (emulated) (sm_80)")
            && ["AttentionGrad at odd shapes", "Linear in bfloat16", "Swin in bfloat16 resumed"]
                .iter()
                .all(|line| written.contains(line)),
        "{written}"
    );
}
