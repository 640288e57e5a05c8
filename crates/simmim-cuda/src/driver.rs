//! The driver: devices, memory, streams, launches. With `blas.rs` the only place that calls foreign code.

#![allow(unsafe_code, reason = "calls the CUDA driver; what each call relies on stands beside it")]

use crate::blas::Blas;
use crate::error::CudaError;
use crate::modules::MODULES;
use crate::step::{Address, Kernel, Launch, Product, Step};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice_attribute, CUgraphInstantiate_flags, CUresult, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaEvent, CudaFunction, CudaGraph, CudaStream};
use cudarc::nvrtc::Ptx;
use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

/// CUDA 12.0: the kernels' PTX is of its version.
const OLDEST_DRIVER: i32 = 12000;
/// Ampere: asynchronous copies, and bfloat16 on tensor cores.
const OLDEST_CAPABILITY: (i32, i32) = (8, 0);

/// Names a failed call.
pub(crate) trait Call<T> {
    fn call(self, call: &'static str) -> Result<T, CudaError>;
}

impl<T> Call<T> for Result<T, DriverError> {
    fn call(self, call: &'static str) -> Result<T, CudaError> {
        self.map_err(|e| CudaError::Driver { call, code: e.0 })
    }
}

/// Number of devices.
///
/// # Errors
/// [`CudaError::NoDriver`], [`CudaError::OldDriver`].
pub fn device_count() -> Result<usize, CudaError> {
    // SAFETY: loads the library of the driver and asks for nothing; its constructors are the driver's own.
    if !unsafe { sys::is_culib_present() } {
        return Err(CudaError::NoDriver);
    }
    let mut version = 0;
    // SAFETY: the function exists in every driver and writes one `int`.
    let code = unsafe { sys::cuDriverGetVersion(&raw mut version) };
    code.result().call("cuDriverGetVersion")?;
    if version < OLDEST_DRIVER {
        return Err(CudaError::OldDriver { version });
    }
    match CudaContext::device_count() {
        Ok(count) => Ok(usize::try_from(count).unwrap_or(0)),
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => Ok(0),
        Err(e) => Err(e).call("cuDeviceGetCount"),
    }
}

/// A device with its streams and the kernels loaded so far.
pub(crate) struct Gpu {
    pub(crate) name: String,
    pub(crate) capability: (i32, i32),
    context: Arc<CudaContext>,
    /// Where programs run.
    stream: Arc<CudaStream>,
    /// Where inputs arrive while a program runs.
    uploads: Arc<CudaStream>,
    functions: HashMap<Kernel, CudaFunction>,
    modules: HashMap<&'static str, Arc<cudarc::driver::CudaModule>>,
    blas: Option<Blas>,
}

impl Gpu {
    /// Opens a device. `library` says whether products may run on cuBLASLt.
    pub(crate) fn open(ordinal: usize, library: bool) -> Result<Self, CudaError> {
        let count = device_count()?;
        if ordinal >= count {
            return Err(CudaError::NoSuchDevice { ordinal, count });
        }
        let context = CudaContext::new(ordinal).call("cuDevicePrimaryCtxRetain")?;
        // SAFETY: this crate waits for events where streams meet (`Staging`), and uses no `CudaSlice`.
        unsafe { context.disable_event_tracking() };
        let name = context.name().call("cuDeviceGetName")?;
        let capability = context.compute_capability().call("cuDeviceGetAttribute")?;
        if capability < OLDEST_CAPABILITY {
            return Err(CudaError::OldDevice { name, capability });
        }
        let stream = context.new_stream().call("cuStreamCreate")?;
        let uploads = context.new_stream().call("cuStreamCreate")?;
        let blas = if library { Blas::load() } else { None };
        Ok(Self {
            name,
            capability,
            context,
            stream,
            uploads,
            functions: HashMap::new(),
            modules: HashMap::new(),
            blas,
        })
    }

    /// Free and total memory, in bytes.
    pub(crate) fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context.mem_get_info().call("cuMemGetInfo")
    }

    /// Multiprocessors.
    pub(crate) fn multiprocessors(&self) -> usize {
        let attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        self.context.attribute(attribute).map_or(0, |n| usize::try_from(n).unwrap_or(0))
    }

    /// Whether cuBLASLt takes a product, and the working memory that it needs then.
    pub(crate) fn takes(&self, product: &Product) -> Option<usize> {
        self.blas.as_ref()?.workspace(product)
    }

    /// Whether cuBLASLt is there.
    pub(crate) fn has_library(&self) -> bool {
        self.blas.is_some()
    }

    /// Memory of the device, filled with zeros.
    pub(crate) fn allocate(&self, bytes: usize, what: &'static str) -> Result<DeviceMemory, CudaError> {
        let context = self.context.clone();
        if bytes == 0 {
            return Ok(DeviceMemory { context, at: Address::NONE, bytes });
        }
        self.context.bind_to_thread().call("cuCtxSetCurrent")?;
        // SAFETY: a context is current; the memory is owned by what is returned and nothing reads it before it is zeroed.
        let at = match unsafe { result::malloc_sync(bytes) } {
            Ok(at) => Address(at),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => return Err(CudaError::OutOfMemory { what, bytes }),
            Err(e) => return Err(e).call("cuMemAlloc"),
        };
        let memory = DeviceMemory { context, at, bytes };
        self.enqueue(&Step::Zero { at, bytes }, Address::NONE)?;
        Ok(memory)
    }

    /// Pinned memory of the host, filled with zeros.
    pub(crate) fn allocate_pinned(&self, bytes: usize) -> Result<Pinned, CudaError> {
        let context = self.context.clone();
        if bytes == 0 {
            return Ok(Pinned { context, start: std::ptr::null_mut(), bytes });
        }
        self.context.bind_to_thread().call("cuCtxSetCurrent")?;
        // SAFETY: a context is current; the memory is owned by what is returned and written below before it is read.
        let start: *mut u8 = match unsafe { result::malloc_host(bytes, 0) } {
            Ok(start) => start.cast(),
            Err(DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY)) => {
                return Err(CudaError::OutOfMemory { what: "pinned memory of the host", bytes });
            }
            Err(e) => return Err(e).call("cuMemHostAlloc"),
        };
        // SAFETY: the driver has just given so many bytes.
        unsafe { std::ptr::write_bytes(start, 0, bytes) };
        Ok(Pinned { context, start, bytes })
    }

    /// Copies to the device and waits.
    pub(crate) fn upload(&self, to: Address, data: &[u8]) -> Result<(), CudaError> {
        if data.is_empty() {
            return Ok(());
        }
        self.context.bind_to_thread().call("cuCtxSetCurrent")?;
        // SAFETY: the caller's address begins so many bytes of an allocation; `data` lives until the stream has been waited for.
        unsafe { result::memcpy_htod_async(to.0, data, self.stream.cu_stream()) }.call("cuMemcpyHtoDAsync")?;
        self.wait()
    }

    /// Copies from the device once all before is done, and waits.
    pub(crate) fn download(&self, from: Address, into: &mut [u8]) -> Result<(), CudaError> {
        if into.is_empty() {
            return Ok(());
        }
        self.context.bind_to_thread().call("cuCtxSetCurrent")?;
        // SAFETY: the caller's address begins so many bytes of an allocation; `into` is borrowed until the stream has been waited for.
        unsafe { result::memcpy_dtoh_async(into, from.0, self.stream.cu_stream()) }.call("cuMemcpyDtoHAsync")?;
        self.wait()
    }

    /// Waits for all that programs do.
    pub(crate) fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().call("cuStreamSynchronize")
    }

    /// An event, with times where `timed`.
    pub(crate) fn event(&self, timed: bool) -> Result<CudaEvent, CudaError> {
        let flags = timed.then_some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.context.new_event(flags).call("cuEventCreate")
    }

    /// Records an event after what programs were given so far.
    pub(crate) fn record(&self, event: &CudaEvent) -> Result<(), CudaError> {
        event.record(&self.stream).call("cuEventRecord")
    }

    /// Sends a pinned buffer to the device beside what runs there: after `free`, before `arrived`, for which programs wait.
    pub(crate) fn send(
        &self,
        from: &Pinned,
        to: Address,
        free: &CudaEvent,
        arrived: &CudaEvent,
    ) -> Result<(), CudaError> {
        self.uploads.wait(free).call("cuStreamWaitEvent")?;
        // SAFETY: `to` begins an allocation of as many bytes; `Staging` neither drops nor lends `from` before `arrived`.
        unsafe { result::memcpy_htod_async(to.0, from.as_slice(), self.uploads.cu_stream()) }
            .call("cuMemcpyHtoDAsync")?;
        arrived.record(&self.uploads).call("cuEventRecord")?;
        self.stream.wait(arrived).call("cuStreamWaitEvent")
    }

    /// Loads the kernels that steps need.
    pub(crate) fn prepare<'a>(&mut self, steps: impl Iterator<Item = &'a Step>) -> Result<(), CudaError> {
        for step in steps {
            if let Step::Launch(launch) = step {
                self.load(launch.kernel)?;
            }
        }
        Ok(())
    }

    fn load(&mut self, kernel: Kernel) -> Result<(), CudaError> {
        if self.functions.contains_key(&kernel) {
            return Ok(());
        }
        let Kernel(module, name) = kernel;
        if !self.modules.contains_key(module) {
            let text = MODULES.iter().find(|(known, _)| *known == module).map_or("", |(_, text)| text);
            self.modules.insert(module, self.context.load_module(Ptx::from_src(text)).call("cuModuleLoadData")?);
        }
        let function = self.modules[module].load_function(name).call("cuModuleGetFunction")?;
        self.functions.insert(kernel, function);
        Ok(())
    }

    /// Puts a step on the stream of programs. `scratch` is where the working memory begins.
    pub(crate) fn enqueue(&self, step: &Step, scratch: Address) -> Result<(), CudaError> {
        let stream = self.stream.cu_stream();
        self.context.bind_to_thread().call("cuCtxSetCurrent")?;
        match step {
            Step::Launch(launch) => self.launch(launch),
            Step::Product(product) => match &self.blas {
                Some(blas) => blas.enqueue(product, scratch, stream),
                None => Err(CudaError::Driver { call: "cublasLtMatmul", code: CUresult::CUDA_ERROR_NOT_FOUND }),
            },
            Step::Copy { to, from, bytes } => {
                // SAFETY: (1) both ranges lie in allocations that the executor owns: `Program` was verified, and addresses come
                // from its places; (2) they do not overlap; (3) they live until the stream has been waited for, which dropping
                // them does.
                unsafe { result::memcpy_dtod_async(to.0, from.0, *bytes, stream) }.call("cuMemcpyDtoDAsync")
            }
            Step::Zero { at, bytes } => {
                // SAFETY: as (1) and (3) above.
                unsafe { result::memset_d8_async(at.0, 0, *bytes, stream) }.call("cuMemsetD8Async")
            }
        }
    }

    fn launch(&self, launch: &Launch) -> Result<(), CudaError> {
        let Some(function) = self.functions.get(&launch.kernel) else {
            return Err(CudaError::Driver { call: "cuLaunchKernel", code: CUresult::CUDA_ERROR_NOT_FOUND });
        };
        let mut parameters: Vec<*mut c_void> = launch.parameters.iter().map(|p| p.as_ptr().cast_mut().cast()).collect();
        let [x, y, z] = launch.grid;
        // SAFETY: (1) `steps` gives each kernel the parameters of its source, in number, order and type, which the emulator checks
        // against both source and PTX; (2) the kernel stays within operands of the given extents, which `Program` has verified to
        // lie in allocations of the executor, and which the emulator's tests check with guard zones; (3) what it writes overlaps
        // nothing else that it is given, but in place; (4) the driver copies the parameters before it returns.
        unsafe {
            result::launch_kernel(
                function.cu_function(),
                (x, y, z),
                (launch.threads, 1, 1),
                0,
                self.stream.cu_stream(),
                &mut parameters,
            )
        }
        .call("cuLaunchKernel")
    }

    /// Captures steps as a graph.
    pub(crate) fn capture<'a>(
        &self,
        steps: impl Iterator<Item = &'a Step>,
        scratch: Address,
    ) -> Result<Captured, CudaError> {
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).call("cuStreamBeginCapture")?;
        let mut enqueued = Ok(());
        for step in steps {
            enqueued = enqueued.and_then(|()| self.enqueue(step, scratch));
        }
        // Ended also after a failure, or the stream would take nothing any more.
        let graph = self.stream.end_capture(CUgraphInstantiate_flags(0)).call("cuStreamEndCapture");
        enqueued?;
        let missing =
            CudaError::Driver { call: "cuStreamEndCapture", code: CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED };
        Ok(Captured(graph?.ok_or(missing)?))
    }
}

impl Drop for Gpu {
    fn drop(&mut self) {
        // What runs may use memory that is freed next.
        let _ = self.context.synchronize();
    }
}

/// A captured graph.
pub(crate) struct Captured(CudaGraph);

// SAFETY: a graph may be used by one thread at a time; it is reached through `&mut` of its executor.
unsafe impl Send for Captured {}

impl Captured {
    pub(crate) fn launch(&self) -> Result<(), CudaError> {
        self.0.launch().call("cuGraphLaunch")
    }
}

/// Memory of the device.
pub(crate) struct DeviceMemory {
    context: Arc<CudaContext>,
    at: Address,
    bytes: usize,
}

impl DeviceMemory {
    pub(crate) fn at(&self) -> Address {
        self.at
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let _ = self.context.synchronize();
            // SAFETY: allocated by `Gpu::allocate`, freed once, and nothing runs any more.
            let _ = unsafe { result::free_sync(self.at.0) };
        }
    }
}

/// Pinned memory of the host, from which the device copies by itself.
pub(crate) struct Pinned {
    context: Arc<CudaContext>,
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory is owned, and lent by the rules of slices.
unsafe impl Send for Pinned {}

impl Pinned {
    fn as_slice(&self) -> &[u8] {
        if self.bytes == 0 {
            return &[];
        }
        // SAFETY: so many bytes, written when they were allocated, and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }

    /// The bytes. No copy from them may be on its way.
    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        if self.bytes == 0 {
            return &mut [];
        }
        // SAFETY: as above, and `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if self.bytes > 0 {
            let _ = self.context.synchronize();
            // SAFETY: allocated by `Gpu::allocate_pinned`, freed once, and no copy is on its way.
            let _ = unsafe { result::free_host(self.start.cast()) };
        }
    }
}
