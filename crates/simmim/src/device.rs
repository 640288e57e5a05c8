//! Opens what the steps are computed on: the one place above the engine that names an executor.

use crate::diagnostics::Failure;
use clap::Args;
use simmim_engine::Executor;
use simmim_engine::cpu::{CpuExecutor, Isa};
use simmim_models::Precision;

/// Which device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DeviceName {
    /// The processor, until the kernels for GPUs have been proven on one.
    Auto,
    /// The processor.
    Cpu,
    /// The GPU of that number.
    #[cfg(feature = "cuda")]
    Cuda(usize),
}

/// What `--device` takes in this build.
const DEVICES: &str = if cfg!(feature = "cuda") { "auto, cpu, cuda or cuda:N" } else { "auto or cpu" };

fn device_name(text: &str) -> Result<DeviceName, String> {
    match text {
        "auto" => Ok(DeviceName::Auto),
        "cpu" => Ok(DeviceName::Cpu),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(DeviceName::Cuda(0)),
        other => {
            #[cfg(feature = "cuda")]
            if let Some(number) = other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
                return Ok(DeviceName::Cuda(number));
            }
            Err(format!("this build has no device `{other}`; use {DEVICES}"))
        }
    }
}

/// Where to compute.
#[derive(Debug, Clone, Args)]
pub(crate) struct DeviceArguments {
    /// Device to run on: cpu, or cuda:N for a GPU (not yet tested on hardware: run `simmim selftest --device cuda` first). auto is cpu.
    #[arg(long, value_name = "DEVICE", default_value = "auto", value_parser = device_name)]
    pub(crate) device: DeviceName,
    /// CPU threads; 0: one per core.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(crate) threads: usize,
    /// Numbers that matrix products multiply: f32, or bf16 for mixed precision, which is faster where the processor has such products;
    /// default: what the recipe says where a model is trained, f32 otherwise.
    #[arg(long, value_name = "f32|bf16")]
    pub(crate) precision: Option<Precision>,
}

impl DeviceArguments {
    /// The processor with so many threads.
    pub(crate) fn processor(threads: usize) -> Self {
        Self { device: DeviceName::Cpu, threads, precision: None }
    }

    /// The precision of a model that is used, not trained.
    pub(crate) fn precision(&self) -> Precision {
        self.precision.unwrap_or_default()
    }

    /// Threads of the host: for reading images, and for what is computed outside of programs.
    pub(crate) fn host_threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        if self.threads == 0 { cores() } else { self.threads }
    }
}

/// Opens a device.
pub(crate) fn open(a: &DeviceArguments) -> Result<Box<dyn Executor>, Failure> {
    open_with(a, None)
}

/// Opens a device, the processor with the instruction set of that name.
pub(crate) fn open_with(a: &DeviceArguments, isa: Option<&str>) -> Result<Box<dyn Executor>, Failure> {
    match a.device {
        DeviceName::Auto | DeviceName::Cpu => {
            let isa = match isa {
                Some(name) => Isa::named(name).ok_or_else(|| no_such_isa("--isa", name))?,
                None => Isa::detect(),
            };
            Ok(Box::new(CpuExecutor::with_isa(a.threads, isa)?))
        }
        #[cfg(feature = "cuda")]
        DeviceName::Cuda(number) => match isa {
            Some(name) => Err(Failure::input(
                format!("--isa {name} names instructions of the processor, and --device cuda:{number} is none"),
                "leave one of them out",
            )),
            None => Ok(Box::new(simmim_cuda::CudaExecutor::open(number)?)),
        },
    }
}

/// Checks the instruction set that the environment names.
pub(crate) fn check_environment() -> Result<(), Failure> {
    Isa::from_environment().map(drop).map_err(|name| no_such_isa(Isa::VARIABLE, &name))
}

fn no_such_isa(source: &str, name: &str) -> Failure {
    let here: Vec<&str> = Isa::available().into_iter().map(Isa::name).collect();
    Failure::input(
        format!("{source}: this processor has no instruction set `{name}`"),
        format!("it has {}", here.join(", ")),
    )
}
