// Threads of a block on fibers.
//
// A missing barrier shows only when threads run in an order that the author did not think of. So a warp, drawn at random, runs
// as far as it can go (its threads in an order drawn anew) before another one may: readers run ahead of writers, and writers of
// the next round ahead of readers of this one. Fibers wait in states, not in loops, so a launch costs about one switch for each
// thread and barrier.

#include "fibers.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <set>
#include <string>
#include <vector>

dim3 threadIdx, blockIdx, blockDim, gridDim;

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
// Saves what a called function must keep, changes stacks, restores.
extern "C" void simt_switch(void** from, void* to);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
.size simt_switch, .-simt_switch
)");
#else
#include <ucontext.h>
#endif

namespace simt {
namespace {

constexpr size_t kStack = 128 << 10;
constexpr size_t kSharedLimit = 48 << 10;
constexpr size_t kGuard = 64;
constexpr unsigned char kGuardByte = 0xa5;
constexpr int kMostThreads = 1024;

#if defined(__x86_64__) && !defined(SIMT_UCONTEXT)
using Context = void*;
void change(Context& from, Context& to) { simt_switch(&from, to); }
void prepare(Context& context, char* stack, void (*entry)()) {
    auto top = reinterpret_cast<uintptr_t>(stack + kStack) & ~uintptr_t{63};
    void** sp = reinterpret_cast<void**>(top);
    *--sp = nullptr;  // where `entry` would return to, which it never does
    *--sp = reinterpret_cast<void*>(entry);
    for (int i = 0; i < 6; i++) *--sp = nullptr;
    context = sp;
}
#else
using Context = ucontext_t;
void change(Context& from, Context& to) { swapcontext(&from, &to); }
void prepare(Context& context, char* stack, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = kStack;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

enum class State : uint8_t { fresh, ready, waiting, done };

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
    bool valid;
    int group;
};

struct Fiber {
    Context context;
    char* stack;
    State state;
    int committed;
    std::vector<Copy> copies;
};

struct Warp {
    Words in[32], out[32];
    int arrived;
    int runnable;
    Site* site;
};

struct SharedArray {
    Site* site;
    size_t offset, bytes;
};

uint64_t state_of_random = 0x9e3779b97f4a7c15u;
std::set<std::string> skipped;
std::vector<Site*>& all_sites() {
    static std::vector<Site*> sites;
    return sites;
}

Fiber fibers[kMostThreads];
Warp warps[kMostThreads / 32];
std::vector<char*> free_stacks;
Context scheduler;
int current, threads, finished;
int at_barrier;
Site* barrier_site;
bool early_copies, failed;
std::string failure;
Entry body;
void** body_parameters;

alignas(64) unsigned char shared_memory[kSharedLimit + 64 * kGuard];
std::vector<SharedArray> shared_arrays;
size_t shared_end, shared_bytes;

std::string name_of(const Site& site) {
    const char* slash = std::strrchr(site.file, '/');
    return std::string(slash ? slash + 1 : site.file) + ":" + std::to_string(site.line);
}

void wait() {
    fibers[current].state = State::waiting;
    warps[current / 32].runnable--;
    change(fibers[current].context, scheduler);
}

void wake(int thread) {
    if (thread == current) return;
    fibers[thread].state = State::ready;
    warps[thread / 32].runnable++;
}

void land(const Copy& copy) {
    if (copy.valid) std::memcpy(copy.to, copy.from, copy.bytes);
    else std::memset(copy.to, 0, copy.bytes);
}

void run_thread() {
    body(body_parameters);
    fibers[current].state = State::done;
    warps[current / 32].runnable--;
    finished++;
    change(fibers[current].context, scheduler);
    std::abort();
}

void resume(int thread) {
    Fiber& fiber = fibers[thread];
    current = thread;
    unsigned t = thread;
    threadIdx = dim3(t % blockDim.x, t / blockDim.x % blockDim.y, t / (blockDim.x * blockDim.y));
    if (fiber.state == State::fresh) {
        if (free_stacks.empty()) free_stacks.push_back(static_cast<char*>(std::malloc(kStack)));
        fiber.stack = free_stacks.back();
        free_stacks.pop_back();
        fiber.state = State::ready;
        prepare(fiber.context, fiber.stack, run_thread);
    }
    change(scheduler, fiber.context);
    if (fiber.state == State::done) {
        free_stacks.push_back(fiber.stack);
        fiber.stack = nullptr;
    }
}

void check_guards() {
    for (const SharedArray& array : shared_arrays) {
        for (size_t i = 0; i < kGuard; i++) {
            if (shared_memory[array.offset + array.bytes + i] != kGuardByte || shared_memory[array.offset - kGuard + i] != kGuardByte) {
                failed = true;
                failure = "a write outside the shared array of " + name_of(*array.site);
                return;
            }
        }
    }
}

void report_deadlock() {
    int waiting = 0;
    for (int t = 0; t < threads; t++) waiting += fibers[t].state == State::waiting;
    std::string where = barrier_site && at_barrier ? " at the barrier of " + name_of(*barrier_site) : " at an operation of a warp";
    failed = true;
    failure = std::to_string(waiting) + " threads wait for ever" + where + ", " + std::to_string(finished) + " have ended";
}

void start_block(dim3 at) {
    blockIdx = at;
    finished = at_barrier = 0;
    barrier_site = nullptr;
    early_copies = draw(2);
    shared_arrays.clear();
    shared_end = kGuard;
    shared_bytes = 0;
    std::memset(shared_memory, kGuardByte, kGuard);
    for (int t = 0; t < threads; t++) {
        fibers[t].state = State::fresh;
        fibers[t].committed = 0;
        fibers[t].copies.clear();
    }
    for (int w = 0; w < threads / 32; w++) {
        warps[w].arrived = 0;
        warps[w].runnable = 32;
        warps[w].site = nullptr;
    }
}

void run_warp(int w) {
    while (warps[w].runnable && !failed) {
        int start = draw(32), stride = 2 * draw(16) + 1;
        for (int i = 0; i < 32 && !failed; i++) {
            int thread = w * 32 + (start + i * stride) % 32;
            State state = fibers[thread].state;
            if (state == State::fresh || state == State::ready) resume(thread);
        }
    }
}

void run_block(dim3 at) {
    start_block(at);
    while (finished < threads && !failed) {
        int runnable[kMostThreads / 32], count = 0;
        for (int w = 0; w < threads / 32; w++) if (warps[w].runnable) runnable[count++] = w;
        if (!count) report_deadlock();
        else run_warp(runnable[draw(count)]);
    }
    check_guards();
    for (int t = 0; t < threads; t++) {
        if (fibers[t].stack) free_stacks.push_back(fibers[t].stack);
        fibers[t].stack = nullptr;
    }
}

}  // namespace

Site::Site(const char* kind, const char* file, int line) : kind(kind), file(file), line(line) {
    skipped = simt::skipped.count(name_of(*this));
    all_sites().push_back(this);
}

int skip(const char* name) {
    skipped.clear();
    if (*name) skipped.insert(name);
    int found = 0;
    for (Site* site : all_sites()) {
        site->skipped = skipped.count(name_of(*site));
        found += site->skipped;
    }
    return found;
}

std::string sites() {
    std::set<std::string> lines;
    for (const Site* site : all_sites()) lines.insert(std::string(site->kind) + " " + name_of(*site));
    std::string all;
    for (const std::string& line : lines) all += line + "\n";
    return all;
}

void set_seed(uint64_t seed) { state_of_random = (seed + 1) * 0x9e3779b97f4a7c15u | 1; }

uint64_t draw(uint64_t below) {
    state_of_random ^= state_of_random << 13;
    state_of_random ^= state_of_random >> 7;
    state_of_random ^= state_of_random << 17;
    return (state_of_random >> 20) % below;
}

void fault(const char* format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    failed = true;
    failure = text;
    change(fibers[current].context, scheduler);
    std::abort();
}

void block_barrier(Site& site) {
    if (site.skipped) return;
    if (at_barrier && barrier_site != &site) {
        fault("threads wait at different barriers, %s and %s", name_of(site).c_str(), name_of(*barrier_site).c_str());
    }
    barrier_site = &site;
    if (++at_barrier < threads) return wait();
    at_barrier = 0;
    for (int t = 0; t < threads; t++) wake(t);
}

static void meet(Site& site, const Words& in, Words& out, Collective run, int how) {
    Warp& warp = warps[current / 32];
    int lane = current % 32;
    if (warp.arrived && warp.site != &site) {
        fault("threads of a warp meet at different places, %s and %s", name_of(site).c_str(), name_of(*warp.site).c_str());
    }
    warp.site = &site;
    warp.in[lane] = in;
    if (++warp.arrived < 32) {
        wait();
    } else {
        warp.arrived = 0;
        run(warp.in, warp.out, how);
        for (int t = current / 32 * 32, end = t + 32; t < end; t++) wake(t);
    }
    out = warp.out[lane];
}

void collective(Site& site, const Words& in, Words& out, Collective run, int how) {
    if (site.skipped) out = in;
    else meet(site, in, out, run, how);
}

void* shared(Site& site, size_t bytes) {
    for (const SharedArray& array : shared_arrays) if (array.site == &site) return shared_memory + array.offset;
    size_t room = (bytes + 15) / 16 * 16;
    shared_bytes += room;
    if (shared_bytes > kSharedLimit) fault("%zu bytes of shared memory, a block has %zu", shared_bytes, kSharedLimit);
    size_t offset = shared_end;
    std::memset(shared_memory + offset, 0xff, bytes);
    std::memset(shared_memory + offset + bytes, kGuardByte, room - bytes + kGuard);
    shared_end += room + kGuard;
    shared_arrays.push_back({&site, offset, bytes});
    return shared_memory + offset;
}

void copy_async(void* to, const void* from, size_t bytes, bool valid) {
    auto misaligned = [bytes](const void* p) { return reinterpret_cast<uintptr_t>(p) % bytes != 0; };
    if (misaligned(to) || (valid && misaligned(from))) fault("an asynchronous copy of %zu bytes is not aligned to them", bytes);
    Fiber& fiber = fibers[current];
    Copy copy{to, from, bytes, valid, fiber.committed};
    if (early_copies) land(copy);
    else fiber.copies.push_back(copy);
}

void copy_commit() { fibers[current].committed++; }

void copy_wait(Site& site, int pending) {
    if (site.skipped) return;
    Fiber& fiber = fibers[current];
    int through = fiber.committed - pending;
    auto landed = [&](const Copy& copy) {
        bool now = copy.group < through;
        if (now) land(copy);
        return now;
    };
    fiber.copies.erase(std::remove_if(fiber.copies.begin(), fiber.copies.end(), landed), fiber.copies.end());
}

unsigned ballot(Site& site, bool vote) {
    Words in{{vote}}, out{};
    collective(site, in, out, [](const Words* in, Words* out, int) {
        uint32_t votes = 0;
        for (int lane = 0; lane < 32; lane++) votes |= (in[lane].word[0] & 1u) << lane;
        for (int lane = 0; lane < 32; lane++) out[lane].word[0] = votes;
    }, 0);
    return out.word[0];
}

// The fragments of `mma.sync.m16n8k16` (PTX ISA, "Matrix fragments for mma.m16n8k16 with floating point type"). Lane l has
// row l / 4 and columns 2 (l % 4), + 1; its second register of `a` holds row + 8, the third columns + 8, the fourth both.
void mma_bf16(Site& site, float* c, const unsigned* a, const unsigned* b) {
    Words in{}, out{};
    std::memcpy(in.word, a, 16);
    std::memcpy(in.word + 4, b, 8);
    collective(site, in, out, [](const Words* in, Words* out, int) {
        float left[16][16], right[16][8];
        for (int lane = 0; lane < 32; lane++) {
            int g = lane / 4, t = lane % 4;
            for (int half = 0; half < 2; half++) {
                auto part = [&](int i) { return float_of(static_cast<uint16_t>(in[lane].word[i] >> (16 * half))); };
                left[g][2 * t + half] = part(0);
                left[g + 8][2 * t + half] = part(1);
                left[g][2 * t + 8 + half] = part(2);
                left[g + 8][2 * t + 8 + half] = part(3);
                right[2 * t + half][g] = part(4);
                right[2 * t + 8 + half][g] = part(5);
            }
        }
        for (int lane = 0; lane < 32; lane++) {
            for (int i = 0; i < 4; i++) {
                int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
                float sum = 0;
                for (int k = 0; k < 16; k++) sum += left[row][k] * right[k][column];
                std::memcpy(&out[lane].word[i], &sum, 4);
            }
        }
    }, 0);
    float sums[4];
    std::memcpy(sums, out.word, 16);
    for (int i = 0; i < 4; i++) c[i] += sums[i];
}

// `ldmatrix`: lane l names row l % 8 of matrix l / 8, eight numbers of 16 bits, and gets from each matrix the two of row l / 4,
// columns 2 (l % 4), + 1 (of the transposed matrix where asked).
// A planted fault makes it load the fragments of the other layout.
void load_matrix(Site& site, unsigned* to, const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16) fault("a row of ldmatrix is not aligned to 16 bytes");
    Words in{}, out{};
    std::memcpy(in.word, &row, sizeof row);
    meet(site, in, out, [](const Words* in, Words* out, int transposed) {
        const uint16_t* rows[32];
        for (int lane = 0; lane < 32; lane++) std::memcpy(&rows[lane], in[lane].word, sizeof(void*));
        for (int lane = 0; lane < 32; lane++) {
            for (int matrix = 0; matrix < 4; matrix++) {
                uint32_t pair = 0;
                for (int half = 0; half < 2; half++) {
                    int r = lane / 4, c = 2 * (lane % 4) + half;
                    uint16_t element = transposed ? rows[matrix * 8 + c][r] : rows[matrix * 8 + r][c];
                    pair |= static_cast<uint32_t>(element) << (16 * half);
                }
                out[lane].word[matrix] = pair;
            }
        }
    }, transposed != site.skipped);
    std::memcpy(to, out.word, 16);
}

bool launch(dim3 grid, dim3 block, Entry entry, void** parameters, std::string& message) {
    threads = block.x * block.y * block.z;
    failed = false;
    if (threads == 0 || threads > kMostThreads || threads % 32 || !grid.x || !grid.y || !grid.z || grid.y > 65535 || grid.z > 65535) {
        message = "a launch of " + std::to_string(threads) + " threads a block in a grid of " + std::to_string(grid.x) + " x " +
                  std::to_string(grid.y) + " x " + std::to_string(grid.z);
        return false;
    }
    gridDim = grid;
    blockDim = block;
    body = entry;
    body_parameters = parameters;
    std::vector<uint64_t> order(static_cast<size_t>(grid.x) * grid.y * grid.z);
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    for (size_t i = order.size(); i > 1; i--) std::swap(order[i - 1], order[draw(i)]);
    for (uint64_t i : order) {
        run_block(dim3(i % grid.x, i / grid.x % grid.y, i / (static_cast<uint64_t>(grid.x) * grid.y)));
        if (failed) {
            message = failure;
            return false;
        }
    }
    return true;
}

}  // namespace simt

// An index outside an array whose size the compiler knows (`-fsanitize=bounds`); the first field of `data` is the place.
struct SourceLocation {
    const char* file;
    uint32_t line, column;
};
extern "C" void __ubsan_handle_out_of_bounds_abort(SourceLocation* place, uintptr_t index) {
    const char* slash = std::strrchr(place->file, '/');
    simt::fault("index %zd is outside its array at %s:%u", static_cast<ssize_t>(index), slash ? slash + 1 : place->file, place->line);
}
