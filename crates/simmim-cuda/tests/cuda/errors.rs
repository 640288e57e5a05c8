//! What a user meets where the device does not do.

use crate::emulator;
use simmim_cuda::{CudaError, CudaExecutor, device_count};
use simmim_engine::{EngineError, Executor, Graph, Program, TensorType};

#[test]
fn a_device_that_is_not_there_is_named() {
    let (_guard, _) = emulator();
    assert_eq!(device_count(), Ok(1));
    let error = CudaExecutor::open(1).unwrap_err();
    assert_eq!(error, CudaError::NoSuchDevice { ordinal: 1, count: 1 });
    assert_eq!(error.to_string(), "there is no CUDA device 1; there are 1");
    assert!(error.help().unwrap().contains("cuda:0 is the first"));
}

#[test]
fn old_drivers_and_cards_are_named_with_what_to_do() {
    let old = CudaError::OldDriver { version: 11080 };
    assert_eq!(old.to_string(), "the NVIDIA driver knows CUDA 11.8, and 12.0 is needed");
    let card = CudaError::OldDevice { name: "Tesla T4".into(), capability: (7, 5) };
    assert_eq!(card.to_string(), "Tesla T4 has compute capability 7.5, and 8.0 is needed");
    for error in [CudaError::NoDriver, old, card] {
        assert!(error.help().unwrap().contains("--device cpu"), "{error}");
    }
}

/// A model that does not fit leaves the executor as it was: programs loaded before still run.
#[test]
fn memory_that_does_not_suffice_is_an_error_and_no_end() {
    let (_guard, emulator) = emulator();
    let mut executor = CudaExecutor::open(0).unwrap();
    let sum = |elements: usize| {
        let mut graph = Graph::new();
        let inputs = ["a", "b"].map(|name| graph.input(name, TensorType::f32([elements])));
        let y = graph.apply1(simmim_engine::ops::Residual::default(), &inputs).unwrap();
        graph.output("y", y);
        Program::compile(&graph).unwrap()
    };
    let id = executor.load(sum(5)).unwrap();
    // The emulated device has eight gigabytes.
    let error = executor.load(sum(3 << 30)).unwrap_err();
    assert!(matches!(error, EngineError::OutOfMemory { .. }), "{error}");
    assert!(error.help().unwrap().contains("smaller batch"));
    let before = executor.memory();
    let slots = ["a", "b"].map(|name| executor.input(id, name).unwrap());
    let y = executor.output(id, "y").unwrap();
    for run in 0..4 {
        for slot in slots {
            executor.write(slot, &[run as f32; 5]).unwrap();
        }
        executor.run(id).unwrap();
        let mut found = [0.0; 5];
        executor.read(y, &mut found).unwrap();
        assert_eq!(found, [2.0 * run as f32; 5]);
    }
    assert_eq!(executor.memory(), before);
    assert_eq!(emulator.take_fault(), None);
}
