//! The emulator computes what CUDA computes, and notices the faults it is there for. Through an unmodified cudarc.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test or benchmark may fail loudly")]
#![allow(unsafe_code, reason = "launches of kernels whose parameters stand beside them")]

use cudarc::driver::{CudaContext, CudaSlice, CudaStream, DriverError, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use simmim_cuda_emulator::{Emulator, Libraries};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

const PTX: &str = include_str!("../kernels/self_test.ptx");
const SEEDS: u64 = 30;

struct Device {
    emulator: &'static Emulator,
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
}

/// A fault stops the device for all, so these tests run one after another.
fn device() -> (MutexGuard<'static, ()>, Device) {
    static ONE: OnceLock<Mutex<()>> = OnceLock::new();
    let guard = ONE.get_or_init(Mutex::default).lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let emulator = Emulator::install(Libraries::Driver);
    let _ = emulator.take_fault();
    let context = CudaContext::new(0).unwrap();
    // SAFETY: each test uses the memory of one stream, or waits for it.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    (guard, Device { emulator, context, stream })
}

fn config(blocks: u32, threads: u32) -> LaunchConfig {
    LaunchConfig { grid_dim: (blocks, 1, 1), block_dim: (threads, 1, 1), shared_mem_bytes: 0 }
}

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7919) % 1013) as f32).collect()
}

impl Device {
    fn launch<T>(
        &self,
        name: &str,
        shape: LaunchConfig,
        x: &CudaSlice<T>,
        more: Option<&CudaSlice<T>>,
        y: &mut CudaSlice<f32>,
        fault: i32,
    ) -> Result<(), DriverError> {
        let module = self.context.load_module(Ptx::from_src(PTX)).unwrap();
        let function = module.load_function(name).unwrap();
        let mut launch = self.stream.launch_builder(&function);
        launch.arg(x);
        if let Some(more) = more {
            launch.arg(more);
        }
        launch.arg(y).arg(&fault);
        // SAFETY: the parameters are those of the kernel in self_test.cu; the emulator notices what goes outside.
        unsafe { launch.launch(shape) }?;
        self.stream.synchronize()
    }

    /// Sums of three blocks, or the message of the fault.
    fn sums(&self, seed: u64, fault: i32) -> Result<Vec<f32>, String> {
        self.emulator.seed(seed);
        let x = self.stream.clone_htod(&numbers(768)).unwrap();
        let mut y = self.stream.alloc_zeros::<f32>(3).unwrap();
        let done = self.launch("self_test_sum", config(3, 256), &x, None, &mut y, fault);
        match (done, self.emulator.take_fault()) {
            (Ok(()), None) => Ok(self.stream.clone_dtoh(&y).unwrap()),
            (done, message) => Err(format!("{done:?} {}", message.unwrap_or_default())),
        }
    }
}

fn truth() -> Vec<f32> {
    numbers(768).chunks_exact(256).map(|part| part.iter().sum()).collect()
}

#[test]
fn sums_are_right_in_any_order_of_execution() {
    let (_guard, device) = device();
    for seed in 0..SEEDS {
        assert_eq!(device.sums(seed, 0), Ok(truth()));
    }
}

#[test]
fn a_removed_barrier_is_caught() {
    let (_guard, device) = device();
    assert!((0..SEEDS).any(|seed| device.sums(seed, 1) != Ok(truth())), "written without a barrier");
    // The same, planted from outside: whichever barrier goes, the sums are wrong.
    device.sums(0, 0).unwrap();
    let sites = device.emulator.sites();
    let barrier = sites.iter().find(|(kind, name)| kind == "barrier" && name.starts_with("self_test.cu")).unwrap();
    assert!(device.emulator.skip(&barrier.1) > 0);
    let caught = (0..SEEDS).any(|seed| device.sums(seed, 0) != Ok(truth()));
    device.emulator.skip("");
    assert!(caught, "passed over at run time");
}

#[test]
fn an_index_off_by_one_is_caught() {
    let (_guard, device) = device();
    let message = device.sums(0, 2).unwrap_err();
    assert!(message.contains("index 256 is outside its array at self_test.cu:"), "{message}");
    let message = device.sums(0, 3).unwrap_err();
    assert!(message.contains("a write outside an allocation of 12 bytes"), "{message}");
}

#[test]
fn a_barrier_that_not_all_reach_is_caught() {
    let (_guard, device) = device();
    let message = device.sums(0, 4).unwrap_err();
    assert!(message.contains("self_test_sum: 128 threads wait for ever at the barrier of self_test.cu:"), "{message}");
}

#[test]
fn more_shared_memory_than_there_is_is_caught() {
    let (_guard, device) = device();
    let message = device.sums(0, 5).unwrap_err();
    assert!(message.contains("bytes of shared memory, a block has 49152"), "{message}");
}

/// The upper half of a float whose lower half is zero.
fn bf16(values: &[f32]) -> Vec<u16> {
    values.iter().map(|v| (v.to_bits() >> 16) as u16).collect()
}

#[test]
fn fragments_of_a_product_are_those_of_the_hardware() {
    let (_guard, device) = device();
    let (a, b): (Vec<f32>, Vec<f32>) =
        ((0..256).map(|i| (i % 23) as f32 - 11.0).collect(), (0..128).map(|i| (i % 19) as f32 - 9.0).collect());
    let dot = |i: usize| (0..16).map(|k| a[i / 8 * 16 + k] * b[i % 8 * 16 + k]).sum::<f32>();
    let truth: Vec<f32> = (0..128).map(dot).collect();
    for (fault, right) in [(0, true), (1, false)] {
        let (a, b) = (device.stream.clone_htod(&bf16(&a)).unwrap(), device.stream.clone_htod(&bf16(&b)).unwrap());
        let mut c = device.stream.alloc_zeros::<f32>(128).unwrap();
        device.launch("self_test_mma", config(1, 32), &a, Some(&b), &mut c, fault).unwrap();
        assert_eq!(device.stream.clone_dtoh(&c).unwrap() == truth, right, "layout with fault {fault}");
    }
}

#[test]
fn a_forgotten_wait_for_an_asynchronous_copy_is_caught() {
    let (_guard, device) = device();
    let copied = |seed: u64, fault: i32| {
        device.emulator.seed(seed);
        let x = device.stream.clone_htod(&numbers(512)).unwrap();
        let mut y = device.stream.alloc_zeros::<f32>(512).unwrap();
        device.launch("self_test_copy", config(1, 64), &x, None, &mut y, fault).unwrap();
        device.stream.clone_dtoh(&y).unwrap()
    };
    assert!((0..SEEDS).all(|seed| copied(seed, 0) == numbers(512)));
    assert!((0..SEEDS).any(|seed| copied(seed, 1) != numbers(512)));
}

#[test]
fn a_stream_runs_as_late_as_it_may() {
    let (_guard, device) = device();
    let mut y = device.stream.alloc_zeros::<f32>(4).unwrap();
    // SAFETY: filled before it is read.
    let mut pinned = unsafe { device.context.alloc_pinned_with_flags::<f32>(4, 0) }.unwrap();
    pinned.as_mut_slice().unwrap().fill(1.0);
    let start = pinned.as_mut_ptr().unwrap();
    device.stream.memcpy_htod(&pinned, &mut y).unwrap();
    // SAFETY: the memory is this test's; a real device may read it now, which is the fault that is planted here.
    unsafe { start.write(2.0) };
    assert_eq!(
        device.stream.clone_dtoh(&y).unwrap(),
        [2.0, 1.0, 1.0, 1.0],
        "overwritten before the copy was waited for"
    );
    device.stream.memset_zeros(&mut y).unwrap();
    device.stream.memcpy_dtoh(&y, &mut pinned).unwrap();
    // SAFETY: as above: a read that forgets to wait.
    assert_eq!(unsafe { start.read() }, 2.0, "what was there before");
    device.stream.synchronize().unwrap();
    assert_eq!(pinned.as_slice().unwrap(), [0.0; 4]);
}

#[test]
fn a_captured_graph_runs_when_it_is_launched() {
    let (_guard, device) = device();
    let module = device.context.load_module(Ptx::from_src(PTX)).unwrap();
    let function = module.load_function("self_test_sum").unwrap();
    let mut x = device.stream.clone_htod(&numbers(256)).unwrap();
    let mut y = device.stream.alloc_zeros::<f32>(1).unwrap();
    device.stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    // SAFETY: the parameters of the kernel.
    unsafe { device.stream.launch_builder(&function).arg(&x).arg(&mut y).arg(&0i32).launch(config(1, 256)) }.unwrap();
    let graph = device.stream.end_capture(sys::CUgraphInstantiate_flags(0)).unwrap().unwrap();
    assert_eq!(device.stream.clone_dtoh(&y).unwrap(), [0.0], "captured, not run");
    for factor in [1.0, 3.0] {
        let scaled: Vec<f32> = numbers(256).iter().map(|v| v * factor).collect();
        device.stream.memcpy_htod(&scaled, &mut x).unwrap();
        graph.launch().unwrap();
        assert_eq!(device.stream.clone_dtoh(&y).unwrap(), [scaled.iter().sum::<f32>()]);
    }
}

#[test]
fn stale_ptx_is_noticed() {
    let (_guard, device) = device();
    let stale = PTX.replace(".param .u32 self_test_sum_param_2", ".param .u64 self_test_sum_param_2");
    assert_ne!(stale, PTX);
    let module = device.context.load_module(Ptx::from_src(stale)).unwrap();
    assert!(module.load_function("self_test_sum").is_err());
    assert!(device.emulator.take_fault().unwrap().contains("it is stale"));
    let newer = PTX.replacen(".version 8.0", ".version 8.4", 1);
    assert!(device.context.load_module(Ptx::from_src(newer)).is_err(), "text of a newer CUDA than the driver");
}
