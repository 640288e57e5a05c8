// Stands in for the driver library (`libcuda.so`): device memory is host memory, kernels run on fibers.
//
// Work put on a stream runs as late as it may: when the host waits for it, or another stream waits for an event in it. So a host
// that forgets to wait reads what was there before, and a host that overwrites a pinned buffer too early sends what it wrote
// since. Guard zones lie around each allocation; new memory is filled with NaN.

#include "fibers.h"
#include "queue.h"
#include "register.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace {

enum Result {
    kSuccess = 0,
    kInvalidValue = 1,
    kOutOfMemory = 2,
    kInvalidDevice = 101,
    kInvalidImage = 200,
    kUnsupportedPtx = 222,
    kNotFound = 500,
    kNotReady = 600,
    kIllegalAddress = 700,
    kLaunchFailed = 719,
    kCaptureUnsupported = 900,
};

using simt::Kernel;
using simt::kernels;

constexpr size_t kGuard = 1024;
constexpr unsigned char kGuardByte = 0xa5;

struct Event;
struct Stream;

struct Step {
    enum Kind { work, record, wait } kind;
    std::function<void()> run;
    Event* event;
    uint64_t generation;
};

struct Event {
    Stream* stream = nullptr;
    uint64_t asked = 0, reached = 0;
};

struct Graph {
    std::vector<std::function<void()>> steps;
};

struct Stream {
    std::deque<Step> steps;
    std::unique_ptr<Graph> capture;
    int running = 0;
};

struct Allocation {
    unsigned char* block;
    size_t bytes;
};

struct Function {
    const Kernel* kernel;
    std::string name;
};

struct Module {
    std::map<std::string, std::vector<size_t>> entries;
    std::map<std::string, std::unique_ptr<Function>> functions;
};

std::recursive_mutex lock;
std::map<uintptr_t, Allocation> allocations;
std::map<uintptr_t, size_t> pinned;
std::vector<Stream*> streams;
Stream default_stream;
size_t allocated, launches;
std::string failure;
Result failed = kSuccess;

using Locked = std::lock_guard<std::recursive_mutex>;

size_t setting(const char* name, size_t otherwise) {
    const char* text = std::getenv(name);
    return text ? std::strtoull(text, nullptr, 10) : otherwise;
}
size_t driver_version() { return setting("SIMMIM_EMULATOR_DRIVER", 12000); }
size_t memory() { return setting("SIMMIM_EMULATOR_MEMORY", size_t{8} << 30); }

void fail(Result result, std::string message) {
    if (failed == kSuccess) {
        failed = result;
        failure = std::move(message);
    }
}

Stream& stream_of(void* handle) {
    // Null, and the two handles that name the legacy and the per-thread default stream.
    auto value = reinterpret_cast<uintptr_t>(handle);
    return value <= 2 ? default_stream : *static_cast<Stream*>(handle);
}

void drain(Stream& stream);

void advance(Stream& stream) {
    Step step = std::move(stream.steps.front());
    stream.steps.pop_front();
    switch (step.kind) {
        case Step::work: step.run(); break;
        case Step::record: step.event->reached = std::max(step.event->reached, step.generation); break;
        case Step::wait:
            while (step.event->reached < step.generation && step.event->stream && !step.event->stream->steps.empty()) {
                advance(*step.event->stream);
            }
            break;
    }
}

void drain(Stream& stream) {
    while (!stream.steps.empty()) {
        // Other streams may run at any time.
        if (simt::draw(4) == 0 && !streams.empty()) {
            Stream& other = *streams[simt::draw(streams.size())];
            if (&other != &stream && !other.steps.empty()) advance(other);
        }
        if (!stream.steps.empty()) advance(stream);
    }
}

bool intact(const unsigned char* guard) {
    return std::all_of(guard, guard + kGuard, [](unsigned char byte) { return byte == kGuardByte; });
}

void check_guards() {
    for (const auto& [address, allocation] : allocations) {
        if (intact(allocation.block) && intact(allocation.block + kGuard + allocation.bytes)) continue;
        fail(kIllegalAddress, "a write outside an allocation of " + std::to_string(allocation.bytes) + " bytes");
        std::memset(allocation.block, kGuardByte, kGuard);
        std::memset(allocation.block + kGuard + allocation.bytes, kGuardByte, kGuard);
    }
}

void drain_all() {
    drain(default_stream);
    for (Stream* stream : streams) drain(*stream);
    check_guards();
}

int put(void* handle, std::function<void()> run) {
    Stream& stream = stream_of(handle);
    if (stream.capture) stream.capture->steps.push_back(std::move(run));
    else stream.steps.push_back({Step::work, std::move(run), nullptr, 0});
    return failed;
}

bool is_pinned(const void* host, size_t bytes) {
    auto at = reinterpret_cast<uintptr_t>(host);
    auto next = pinned.upper_bound(at);
    if (next == pinned.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second;
}

bool on_device(uintptr_t at, size_t bytes) {
    auto next = allocations.upper_bound(at);
    if (next == allocations.begin()) return false;
    --next;
    return at + bytes <= next->first + next->second.bytes;
}

size_t size_of_type(const std::string& type) {
    return std::strtoull(type.c_str() + type.find_first_of("0123456789"), nullptr, 10) / 8;
}

// Names of the entries of a PTX text with the sizes of their parameters.
bool parse(const char* text, Module& module) {
    std::string ptx(text);
    for (size_t at = ptx.find(".entry "); at != std::string::npos; at = ptx.find(".entry ", at + 1)) {
        size_t open = ptx.find('(', at), close = ptx.find("\n)", at);
        if (open == std::string::npos || close == std::string::npos) return false;
        std::string name = ptx.substr(at + 7, open - at - 7);
        std::vector<size_t>& sizes = module.entries[name];
        for (size_t p = ptx.find(".param ", open); p < close; p = ptx.find(".param ", p + 1)) {
            std::string line = ptx.substr(p, ptx.find('\n', p) - p);
            size_t type = line.rfind(" .") == std::string::npos ? 6 : line.rfind(" .");
            size_t bracket = line.find('[');
            size_t count = bracket == std::string::npos ? 1 : std::strtoull(line.c_str() + bracket + 1, nullptr, 10);
            sizes.push_back(size_of_type(line.substr(type)) * count);
        }
    }
    return !module.entries.empty();
}

int version_of(const char* text) {
    const char* version = std::strstr(text, ".version ");
    return version ? static_cast<int>(std::strtod(version + 9, nullptr) * 10 + 0.5) : 0;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// For the stand-in of cuBLASLt: puts work on a stream, or into what it captures.
int emulator_put(void* stream, std::function<void()> run) {
    Locked guard(lock);
    return put(stream, std::move(run));
}

void emulator_seed(uint64_t seed) {
    Locked guard(lock);
    simt::set_seed(seed);
}

int emulator_skip(const char* name) {
    Locked guard(lock);
    return simt::skip(name);
}

size_t emulator_launches() {
    Locked guard(lock);
    return launches;
}

static void copy_text(const std::string& text, char* to, size_t room) {
    size_t bytes = std::min(room - 1, text.size());
    std::memcpy(to, text.data(), bytes);
    to[bytes] = 0;
}

void emulator_sites(char* to, size_t room) {
    Locked guard(lock);
    copy_text(simt::sites(), to, room);
}

// The first fault since the last call, which it clears; empty where there was none.
void emulator_take_fault(char* to, size_t room) {
    Locked guard(lock);
    copy_text(failure, to, room);
    failure.clear();
    failed = kSuccess;
}

int cuInit(unsigned) { return kSuccess; }
int cuDriverGetVersion(int* version) {
    *version = static_cast<int>(driver_version());
    return kSuccess;
}
int cuDeviceGetCount(int* count) {
    *count = static_cast<int>(setting("SIMMIM_EMULATOR_DEVICES", 1));
    return kSuccess;
}
int cuDeviceGet(int* device, int ordinal) {
    int count;
    cuDeviceGetCount(&count);
    if (ordinal < 0 || ordinal >= count) return kInvalidDevice;
    *device = ordinal;
    return kSuccess;
}
int cuDeviceGetName(char* name, int room, int) {
    std::snprintf(name, room, "fibers (emulated)");
    return kSuccess;
}
int cuDeviceTotalMem_v2(size_t* bytes, int) {
    *bytes = memory();
    return kSuccess;
}
int cuDeviceGetAttribute(int* value, int attribute, int) {
    switch (attribute) {
        case 16: *value = 4; break;                                                              // multiprocessors
        case 75: *value = static_cast<int>(setting("SIMMIM_EMULATOR_CAPABILITY", 80) / 10); break;
        case 76: *value = static_cast<int>(setting("SIMMIM_EMULATOR_CAPABILITY", 80) % 10); break;
        default: *value = 0;
    }
    return kSuccess;
}
int cuDevicePrimaryCtxRetain(void** context, int device) {
    *context = reinterpret_cast<void*>(static_cast<uintptr_t>(device) + 16);
    return kSuccess;
}
int cuDevicePrimaryCtxRelease_v2(int) { return kSuccess; }
static thread_local void* current_context;
int cuCtxSetCurrent(void* context) {
    current_context = context;
    return kSuccess;
}
int cuCtxGetCurrent(void** context) {
    *context = current_context;
    return kSuccess;
}
int cuCtxSynchronize() {
    Locked guard(lock);
    drain_all();
    return failed;
}
int cuMemGetInfo_v2(size_t* available, size_t* total) {
    Locked guard(lock);
    *total = memory();
    *available = *total - std::min(*total, allocated);
    return kSuccess;
}

int cuMemAlloc_v2(uintptr_t* address, size_t bytes) {
    Locked guard(lock);
    if (!bytes) return kInvalidValue;
    if (allocated + bytes > memory()) return kOutOfMemory;
    void* block = nullptr;
    if (posix_memalign(&block, 1024, bytes + 2 * kGuard)) return kOutOfMemory;
    auto* start = static_cast<unsigned char*>(block);
    std::memset(start, kGuardByte, kGuard);
    std::memset(start + kGuard, 0xff, bytes);
    std::memset(start + kGuard + bytes, kGuardByte, kGuard);
    *address = reinterpret_cast<uintptr_t>(start + kGuard);
    allocations[*address] = {start, bytes};
    allocated += bytes;
    return kSuccess;
}
int cuMemFree_v2(uintptr_t address) {
    Locked guard(lock);
    auto found = allocations.find(address);
    if (found == allocations.end()) return kInvalidValue;
    drain_all();
    allocated -= found->second.bytes;
    std::free(found->second.block);
    allocations.erase(found);
    return kSuccess;
}
int cuMemHostAlloc(void** host, size_t bytes, unsigned) {
    Locked guard(lock);
    *host = std::malloc(bytes);
    if (!*host) return kOutOfMemory;
    std::memset(*host, 0xff, bytes);
    pinned[reinterpret_cast<uintptr_t>(*host)] = bytes;
    return kSuccess;
}
int cuMemFreeHost(void* host) {
    Locked guard(lock);
    if (!pinned.erase(reinterpret_cast<uintptr_t>(host))) return kInvalidValue;
    drain_all();
    std::free(host);
    return kSuccess;
}

int cuMemcpyHtoDAsync_v2(uintptr_t to, const void* from, size_t bytes, void* stream) {
    Locked guard(lock);
    if (!on_device(to, bytes)) return kInvalidValue;
    if (is_pinned(from, bytes)) return put(stream, [=] { std::memcpy(reinterpret_cast<void*>(to), from, bytes); });
    auto* bytes_of = static_cast<const unsigned char*>(from);
    std::vector<unsigned char> kept(bytes_of, bytes_of + bytes);
    return put(stream, [to, kept = std::move(kept)] { std::memcpy(reinterpret_cast<void*>(to), kept.data(), kept.size()); });
}
int cuMemcpyDtoHAsync_v2(void* to, uintptr_t from, size_t bytes, void* stream) {
    Locked guard(lock);
    if (!on_device(from, bytes)) return kInvalidValue;
    if (stream_of(stream).capture && !is_pinned(to, bytes)) return kCaptureUnsupported;
    put(stream, [=] { std::memcpy(to, reinterpret_cast<void*>(from), bytes); });
    if (!stream_of(stream).capture && !is_pinned(to, bytes)) {
        drain(stream_of(stream));
        check_guards();
    }
    return failed;
}
int cuMemcpyDtoDAsync_v2(uintptr_t to, uintptr_t from, size_t bytes, void* stream) {
    Locked guard(lock);
    if (!on_device(to, bytes) || !on_device(from, bytes)) return kInvalidValue;
    return put(stream, [=] { std::memmove(reinterpret_cast<void*>(to), reinterpret_cast<void*>(from), bytes); });
}
int cuMemsetD8Async(uintptr_t to, unsigned char value, size_t bytes, void* stream) {
    Locked guard(lock);
    if (!on_device(to, bytes)) return kInvalidValue;
    return put(stream, [=] { std::memset(reinterpret_cast<void*>(to), value, bytes); });
}

int cuStreamCreate(void** handle, unsigned) {
    Locked guard(lock);
    auto* stream = new Stream;
    streams.push_back(stream);
    *handle = stream;
    return kSuccess;
}
int cuStreamDestroy_v2(void* handle) {
    Locked guard(lock);
    auto* stream = static_cast<Stream*>(handle);
    drain(*stream);
    streams.erase(std::find(streams.begin(), streams.end(), stream));
    // Events may still name it; it is empty, and a test makes few.
    return kSuccess;
}
int cuStreamSynchronize(void* handle) {
    Locked guard(lock);
    if (stream_of(handle).capture) return kCaptureUnsupported;
    drain(stream_of(handle));
    check_guards();
    return failed;
}
int cuEventCreate(void** event, unsigned) {
    *event = new Event;
    return kSuccess;
}
int cuEventDestroy_v2(void*) {
    // Steps on streams may still name it.
    return kSuccess;
}
int cuEventRecord(void* handle, void* on) {
    Locked guard(lock);
    auto* event = static_cast<Event*>(handle);
    Stream& stream = stream_of(on);
    if (stream.capture) return kCaptureUnsupported;
    event->stream = &stream;
    stream.steps.push_back({Step::record, {}, event, ++event->asked});
    return failed;
}
int cuStreamWaitEvent(void* on, void* handle, unsigned) {
    Locked guard(lock);
    auto* event = static_cast<Event*>(handle);
    if (stream_of(on).capture) return kCaptureUnsupported;
    stream_of(on).steps.push_back({Step::wait, {}, event, event->asked});
    return failed;
}
int cuEventSynchronize(void* handle) {
    Locked guard(lock);
    auto* event = static_cast<Event*>(handle);
    while (event->stream && event->reached < event->asked && !event->stream->steps.empty()) advance(*event->stream);
    check_guards();
    return failed;
}
int cuEventQuery(void* handle) {
    Locked guard(lock);
    auto* event = static_cast<Event*>(handle);
    return event->reached < event->asked ? kNotReady : failed;
}
int cuEventElapsedTime(float* milliseconds, void*, void*) {
    *milliseconds = 1;
    return kSuccess;
}

int cuModuleLoadData(void** handle, const void* image) {
    Locked guard(lock);
    auto* text = static_cast<const char*>(image);
    auto module = std::make_unique<Module>();
    // PTX 8.0 came with CUDA 12.0, 8.x with 12.x, 9.0 with 13.0.
    int newest = static_cast<int>(driver_version() / 1000 - 4) * 10 + static_cast<int>(driver_version() % 1000 / 10);
    if (version_of(text) > newest) return kUnsupportedPtx;
    if (!parse(text, *module)) return kInvalidImage;
    *handle = module.release();
    return kSuccess;
}
int cuModuleUnload(void*) { return kSuccess; }
int cuModuleGetFunction(void** handle, void* from, const char* name) {
    Locked guard(lock);
    auto* module = static_cast<Module*>(from);
    auto entry = module->entries.find(name);
    auto kernel = kernels().find(name);
    if (entry == module->entries.end() || kernel == kernels().end()) return kNotFound;
    if (entry->second != kernel->second.sizes) {
        fail(kInvalidImage, std::string("the PTX of ") + name + " takes other parameters than its source: it is stale");
        return kInvalidImage;
    }
    auto& function = module->functions[name];
    if (!function) function = std::make_unique<Function>(Function{&kernel->second, name});
    *handle = function.get();
    return kSuccess;
}
int cuLaunchKernel(void* handle, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void* stream,
                   void** parameters, void**) {
    Locked guard(lock);
    if (shared) return kInvalidValue;
    auto* function = static_cast<Function*>(handle);
    std::vector<std::vector<char>> kept;
    for (size_t i = 0; i < function->kernel->sizes.size(); i++) {
        auto* bytes = static_cast<const char*>(parameters[i]);
        kept.emplace_back(bytes, bytes + function->kernel->sizes[i]);
    }
    return put(stream, [=, kept = std::move(kept)]() mutable {
        std::vector<void*> pointers;
        for (auto& value : kept) pointers.push_back(value.data());
        std::string message;
        launches++;
        if (failed == kSuccess && !simt::launch(dim3(gx, gy, gz), dim3(bx, by, bz), function->kernel->entry, pointers.data(), message)) {
            fail(kLaunchFailed, function->name + ": " + message);
        }
    });
}

int cuStreamBeginCapture_v2(void* handle, int) {
    Locked guard(lock);
    if (reinterpret_cast<uintptr_t>(handle) <= 2) return kCaptureUnsupported;
    stream_of(handle).capture = std::make_unique<Graph>();
    return kSuccess;
}
int cuStreamEndCapture(void* handle, void** graph) {
    Locked guard(lock);
    *graph = stream_of(handle).capture.release();
    return kSuccess;
}
int cuStreamIsCapturing(void* handle, int* status) {
    Locked guard(lock);
    *status = stream_of(handle).capture ? 1 : 0;
    return kSuccess;
}
int cuGraphInstantiateWithFlags(void** executable, void* graph, unsigned long long) {
    *executable = new Graph(*static_cast<Graph*>(graph));
    return kSuccess;
}
int cuGraphUpload(void*, void*) { return kSuccess; }
int cuGraphLaunch(void* executable, void* stream) {
    Locked guard(lock);
    // The steps are copied: the graph may be destroyed while they wait.
    for (auto& step : static_cast<Graph*>(executable)->steps) put(stream, step);
    return failed;
}
int cuGraphExecDestroy(void* executable) {
    delete static_cast<Graph*>(executable);
    return kSuccess;
}
int cuGraphDestroy(void* graph) {
    delete static_cast<Graph*>(graph);
    return kSuccess;
}
int cuGetErrorName(int, const char** name) {
    *name = "CUDA_ERROR_OF_THE_EMULATOR";
    return kSuccess;
}
int cuGetErrorString(int, const char** text) {
    *text = "an error of the emulated device";
    return kSuccess;
}

}  // extern "C"
#pragma GCC visibility pop
